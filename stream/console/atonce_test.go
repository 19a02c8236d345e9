package console

import (
	"net/http"
	"sync"
	"testing"
)

// both has two ask at the same moment and returns what they get.
func both(a, b func() int) (first, second int) {
	var ready, ended sync.WaitGroup
	ready.Add(2)
	for at, f := range map[*int]func() int{&first: a, &second: b} {
		ended.Go(func() {
			ready.Done()
			ready.Wait()
			*at = f()
		})
	}
	ended.Wait()
	return first, second
}

// TestUsersAreChangedAtOnce, at two consoles: two administrators who remove each other do
// not leave the page open to all, and nothing that is said of a user is undone by what
// somebody else says.
func TestUsersAreChangedAtOnce(t *testing.T) {
	h := newHall(t, config())
	other := *h
	other.start(config())
	here := h.member(Admin)
	there := here
	there.h = &other
	asks := func(who asker, method, path string, body any) func() int {
		return func() int { status, _ := who.do(method, path, body); return status }
	}
	read := func() *people {
		for _, c := range []*Console{h.c, other.c} { // which hear of each other's changes by and by
			if err := c.door.people.refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		return h.c.door.people
	}
	for range 5 {
		for _, name := range []string{"ann", "bob"} { // one of them is there
			here.do("POST", "users", map[string]any{"name": name, "password": password, "role": "admin"})
		}
		ok[any](here, "POST", "users", map[string]any{"name": "eve", "password": password, "role": "viewer"})
		read()
		a, b := both(asks(here, "PATCH", "users/eve", map[string]any{"disabled": true}), asks(there, "PATCH", "users/eve", map[string]any{"role": "operator"}))
		if eve, _ := read().get(userKeys + "eve"); a != http.StatusOK || b != http.StatusOK || !eve.Disabled || eve.Role != Operator {
			t.Fatalf("disabled: %d, made an operator: %d, and eve is %v, disabled %v", a, b, eve.Role, eve.Disabled)
		}
		a, b = both(asks(here, "DELETE", "users/bob", nil), asks(there, "DELETE", "users/ann", nil))
		if left := read().adminsBut(""); left != 1 {
			t.Fatalf("two administrators are removed (%d, %d): %d are left", a, b, left)
		}
		ok[any](here, "DELETE", "users/eve", nil)
	}
}

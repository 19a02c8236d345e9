package access_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"
	"pgregory.net/rapid"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// person is a user and what it proves itself by.
type person struct {
	access.User
	seed     []byte
	password string
}

func newPerson(t testing.TB, u access.User) person {
	t.Helper()
	p := person{User: u}
	var err error
	if u.MQTT {
		p.Key, p.password, err = access.NewPassword()
	} else {
		p.Key, p.seed, err = access.NewNKey()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.Created = time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
	return p
}

// cast are one user of each role, as the matrix has them.
func cast(t testing.TB) map[string]person {
	t.Helper()
	all := map[string]person{}
	for _, u := range []access.User{
		{Name: "line1", Role: access.Camera, Detector: "parts"},
		{Name: "lamp", Role: access.Subscriber, Detector: "parts", Kinds: []string{"anomaly"}},
		{Name: "view", Role: access.Subscriber, Detector: "parts", Live: true},
		{Name: "worker", Role: access.Worker},
		{Name: "trainer", Role: access.Trainer},
		{Name: "op", Role: access.Operator},
		{Name: "setup", Role: access.Setup},
	} {
		all[u.Name] = newPerson(t, u)
	}
	return all
}

func fileOf(all map[string]person) access.File {
	var f access.File
	for _, p := range all {
		f.Users = append(f.Users, p.User)
	}
	return f
}

func TestFileComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth", "users.yaml")
	if f, err := access.Load(path); err != nil || len(f.Users) != 0 {
		t.Fatalf("a file that is not there: %v, %v", f, err)
	}
	f := fileOf(cast(t))
	mq := newPerson(t, access.User{Name: "mq", Role: access.Camera, Detector: "parts", MQTT: true})
	if err := f.Add(mq.User); err != nil {
		t.Fatal(err)
	}
	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	got, err := access.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	u, err := got.Get("mq")
	if err != nil || u.Key != mq.Key || !u.Created.Equal(mq.Created) {
		t.Fatalf("%+v, %v", u, err)
	}
	if bcrypt.CompareHashAndPassword([]byte(u.Key.Hash), []byte(mq.password)) != nil {
		t.Fatal("the hash is not the password's")
	}
	b, _ := os.ReadFile(path)
	for name, p := range cast(t) {
		if strings.Contains(string(b), string(p.seed)) || strings.Contains(string(b), mq.password) {
			t.Fatalf("the file has a secret of %s", name)
		}
	}
}

func TestWrongUsersAreRefused(t *testing.T) {
	key := newPerson(t, access.User{Name: "x", Role: access.Worker}).Key
	for name, u := range map[string]access.User{
		"a name with a blank":       {Name: "a b", Role: access.Worker, Key: key},
		"a name that injects":       {Name: `x", "y`, Role: access.Worker, Key: key},
		"no role":                   {Name: "a", Key: key},
		"a role that is none":       {Name: "a", Role: "king", Key: key},
		"a camera without detector": {Name: "a", Role: access.Camera, Key: key},
		"a detector that is a star": {Name: "a", Role: access.Worker, Detector: "*", Key: key},
		"a camera that is >":        {Name: "a", Role: access.Camera, Detector: "d", Camera: ">", Key: key},
		"a kind that is a star":     {Name: "a", Role: access.Subscriber, Kinds: []string{"*"}, Key: key},
		"a trainer of one detector": {Name: "a", Role: access.Trainer, Detector: "d", Key: key},
		"no key":                    {Name: "a", Role: access.Worker},
		"a seed for a key":          {Name: "a", Role: access.Worker, Key: access.Key{Public: "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"}},
		"a password in clear":       {Name: "a", Role: access.Camera, Detector: "d", MQTT: true, Key: access.Key{Hash: "hunter2"}},
		"MQTT with an NKey":         {Name: "a", Role: access.Camera, Detector: "d", MQTT: true, Key: key},
		"an MQTT worker":            {Name: "a", Role: access.Worker, MQTT: true, Key: key},
	} {
		if err := u.Validate(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	twice := access.File{Users: []access.User{{Name: "a", Role: access.Worker, Key: key}, {Name: "b", Role: access.Worker, Key: key}}}
	if twice.Validate() == nil {
		t.Error("two users with one key: taken")
	}
	if _, err := access.Parse([]byte("users:\n  - name: a\n    rights: all\n")); err == nil || !strings.Contains(err.Error(), "rights") {
		t.Errorf("an unknown key: %v", err)
	}
}

// What a nats-server takes for everything must never be rendered: an empty
// list, or > in the first place. Nor may anybody delete a stream.
func TestRenderedRightsAreNeverEverything(t *testing.T) {
	f := fileOf(cast(t))
	conf, err := access.Render(stream.Names{}, f, "", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Accounts map[string]struct {
			Users []struct {
				NKey        string
				Permissions struct{ Publish, Subscribe any }
			}
		}
	}
	if err := json.Unmarshal(conf, &parsed); err != nil {
		t.Fatal(err)
	}
	users := 0
	for account, a := range parsed.Accounts {
		for _, u := range a.Users {
			users++
			for what, list := range map[string]any{"publish": u.Permissions.Publish, "subscribe": u.Permissions.Subscribe} {
				switch l := list.(type) {
				case map[string]any:
					if l["deny"] != ">" {
						t.Errorf("%s %s: %v", account, what, l)
					}
				case []any:
					if len(l) == 0 {
						t.Errorf("%s: a user may %s everything by an empty list", account, what)
					}
					for _, s := range l {
						s := s.(string)
						if strings.HasPrefix(s, ">") || strings.HasPrefix(s, "*") || strings.Contains(s, "STREAM.DELETE") || s == "$JS.>" || s == "$JS.API.>" {
							t.Errorf("%s: a user may %s %s", account, what, s)
						}
					}
				default:
					t.Errorf("%s: %s is %v: everything", account, what, list)
				}
			}
		}
	}
	if users != len(f.Users) {
		t.Fatalf("%d users rendered of %d", users, len(f.Users))
	}
}

// Whatever a file holds: either it is refused, or the server takes what is
// rendered, and no more users than the file has.
func FuzzUsers(f *testing.F) {
	f.Add([]byte("users:\n  - name: a\n    role: worker\n    key: {public: UB}\n"), "nearmiss")
	f.Add([]byte("users: []"), "p")
	key, _, err := access.NewNKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("users:\n  - name: cam\n    role: camera\n    detector: d\n    camera: c\n    key: {public: "+key.Public+"}\n    created: 2026-11-28T00:00:00Z\n"), "nearmiss")
	f.Fuzz(func(t *testing.T, b []byte, prefix string) {
		file, err := access.Parse(b)
		if err != nil {
			return
		}
		conf, err := access.Render(stream.Names{Prefix: prefix}, file, "", time.Unix(0, 0))
		if err != nil {
			return
		}
		var o server.Options
		if err := o.ProcessConfigString(string(conf)); err != nil {
			t.Fatalf("the server refuses what was rendered: %v\n%s", err, conf)
		}
		if n := len(o.Nkeys) + len(o.Users); n > 2*len(file.Users) {
			t.Fatalf("%d users from a file of %d", n, len(file.Users))
		}
	})
}

// A disabled user, and an old key after its time, are not rendered.
func TestRenderedKeysAreTheGoodOnes(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(rt *rapid.T) {
		p := newPerson(t, access.User{Name: "w", Role: access.Worker})
		old := newPerson(t, access.User{Name: "w", Role: access.Worker}).Key
		p.Disabled = rapid.Bool().Draw(rt, "disabled")
		p.Old = &old
		p.OldUntil = now.Add(time.Duration(rapid.IntRange(-100, 100).Draw(rt, "minutes")) * time.Minute)
		f := access.File{Users: []access.User{p.User}}
		conf, err := access.Render(stream.Names{}, f, "", now)
		if err != nil {
			rt.Fatal(err)
		}
		has := func(k access.Key) bool { return strings.Contains(string(conf), `"nkey": "`+k.Public+`"`) }
		if has(p.Key) == p.Disabled {
			rt.Fatalf("disabled %v, key rendered %v", p.Disabled, has(p.Key))
		}
		if want := !p.Disabled && p.OldUntil.After(now); has(old) != want {
			rt.Fatalf("old key until %v: rendered %v", p.OldUntil, has(old))
		}
		if next := f.NextChange(now); p.OldUntil.After(now) != !next.IsZero() {
			rt.Fatalf("next change %v", next)
		}
	})
}

// TestUsersAreAddedAtOnce, and all are in the file; whoever gets a key gets it before the
// file is changed again.
func TestUsersAreAddedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth", "users.yaml")
	const n = 12
	var ready, ended sync.WaitGroup
	ready.Add(n)
	var inside atomic.Int32
	for i := range n {
		p := newPerson(t, access.User{Name: fmt.Sprint("line", i), Role: access.Worker})
		ended.Go(func() {
			ready.Done()
			ready.Wait()
			if err := access.Update(t.Context(), path, func(f *access.File) error {
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d change the file at once", n)
				}
				return f.Add(p.User)
			}, func() error {
				inside.Add(-1)
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	ended.Wait()
	f, err := access.Load(path)
	if err != nil || len(f.Users) != n {
		t.Errorf("%d users of %d are in the file: %v", len(f.Users), n, err)
	}
	refused := errors.New("no")
	if err := access.Update(t.Context(), path, func(*access.File) error { return refused }, nil); !errors.Is(err, refused) {
		t.Error(err)
	}
}

// TestWhoWaitsForTheUsersCanGiveUp: the wait for another program ends with the context.
func TestWhoWaitsForTheUsersCanGiveUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.yaml")
	f, err := os.Create(path + ".lock") // as another program has it
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- access.Update(ctx, path, func(*access.File) error { return errors.New("two change the file at once") }, nil)
	}()
	giveUp()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), path) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits on")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := access.Update(t.Context(), path, func(*access.File) error { return nil }, func() error { return nil }); err != nil {
		t.Errorf("when the other is done: %v", err)
	}
}

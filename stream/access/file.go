package access

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/internal/wait"
)

// maxFile bounds users.yaml: ten thousand users take about 4 MiB.
const maxFile = 16 << 20

// ErrNoUser: the file has no user of that name.
var ErrNoUser = errors.New("no such user")

// File is users.yaml: the identities of one installation.
type File struct {
	Users []User `yaml:"users"`
}

// Parse reads users.yaml. Unknown keys, wrong users and names that appear twice
// are refused.
func Parse(b []byte) (File, error) {
	var f File
	if len(b) > maxFile {
		return f, fmt.Errorf("users file of %d bytes: the limit is %d", len(b), maxFile)
	}
	err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&f)
	if err != nil && !errors.Is(err, io.EOF) {
		return f, fmt.Errorf("users file: %s", yaml.FormatError(err, false, false))
	}
	return f, f.Validate()
}

// Validate reports everything that is wrong.
func (f File) Validate() error {
	var errs []error
	seen := map[string]bool{}
	keys := map[string]string{}
	for _, u := range f.Users {
		if seen[u.Name] {
			errs = append(errs, fmt.Errorf("user %q appears twice", u.Name))
		}
		seen[u.Name] = true
		if other := keys[u.Key.Public]; u.Key.Public != "" && other != "" {
			errs = append(errs, fmt.Errorf("users %q and %q have the same key", other, u.Name))
		}
		keys[u.Key.Public] = u.Name
		errs = append(errs, u.Validate())
	}
	return errors.Join(errs...)
}

// Load reads the file at path. A file that is not there has no users.
func Load(path string) (File, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("read users: %w", err)
	}
	f, err := Parse(b)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Update lets do work on the file at path and saves it, and then does what goes with the
// change. Other programs wait meanwhile: what one of two at once adds the other would
// write away. Who waits until ctx ends changes nothing.
func Update(ctx context.Context, path string, do func(*File) error, then func() error) error {
	unlock, err := lock(ctx, path)
	if err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	defer unlock()
	f, err := Load(path)
	if err != nil {
		return err
	}
	if err := do(&f); err != nil {
		return err
	}
	if err := f.Save(path); err != nil {
		return err
	}
	return then()
}

// lock waits until no other program has the lock of a file, which lies beside it: the
// file itself is another one after each change. A long wait is logged by the
// logger of ctx.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	notice := time.AfterFunc(time.Second, func() {
		zerolog.Ctx(ctx).Info().Str("lock", f.Name()).Msg("another program changes the same files: waiting until it is done")
	})
	defer notice.Stop()
	for {
		switch err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case errors.Is(err, syscall.EWOULDBLOCK) && ctx.Err() == nil:
			wait.Pause(ctx, 20*time.Millisecond)
			continue
		case ctx.Err() != nil:
			err = ctx.Err()
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
}

// Save writes the file as a whole, readable by its owner only.
func (f File) Save(path string) error {
	if err := f.Validate(); err != nil {
		return err
	}
	slices.SortFunc(f.Users, func(a, b User) int { return cmp.Compare(a.Name, b.Name) })
	b, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	head := "# Identities of machines: public keys and password hashes. Change it with `nearmiss users`.\n"
	if err := renameio.WriteFile(path, append([]byte(head), b...), 0o600); err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	return nil
}

// Get returns the user of that name.
func (f File) Get(name string) (User, error) {
	if i := f.index(name); i >= 0 {
		return f.Users[i], nil
	}
	return User{}, fmt.Errorf("user %q: %w: see nearmiss users list", name, ErrNoUser)
}

// Owner is the name of the user with that public key, now or before the last
// rotation; empty: nobody's.
func (f File) Owner(public string) string {
	for _, u := range f.Users {
		if public != "" && (u.Key.Public == public || u.Old != nil && u.Old.Public == public) {
			return u.Name
		}
	}
	return ""
}

func (f File) index(name string) int {
	return slices.IndexFunc(f.Users, func(u User) bool { return u.Name == name })
}

// Add appends u, which must be new and valid.
func (f *File) Add(u User) error {
	if f.index(u.Name) >= 0 {
		return fmt.Errorf("user %q exists: rotate its key, or remove it first", u.Name)
	}
	if err := u.Validate(); err != nil {
		return err
	}
	f.Users = append(f.Users, u)
	return nil
}

// Change replaces the user of u's name.
func (f *File) Change(u User) error {
	i := f.index(u.Name)
	if i < 0 {
		return fmt.Errorf("user %q: %w", u.Name, ErrNoUser)
	}
	if err := u.Validate(); err != nil {
		return err
	}
	f.Users[i] = u
	return nil
}

// Remove takes the user out; its connections end as soon as the broker has read
// the file.
func (f *File) Remove(name string) error {
	i := f.index(name)
	if i < 0 {
		return fmt.Errorf("user %q: %w", name, ErrNoUser)
	}
	f.Users = slices.Delete(f.Users, i, i+1)
	return nil
}

// NextChange is when an old key expires next, after now; zero when none does.
func (f File) NextChange(now time.Time) time.Time {
	var next time.Time
	for _, u := range f.Users {
		if u.Old != nil && u.OldUntil.After(now) && (next.IsZero() || u.OldUntil.Before(next)) {
			next = u.OldUntil
		}
	}
	return next
}

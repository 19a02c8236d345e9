package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream/access"
)

// started runs a broker; ended has what Run returned.
func started(t *testing.T, cfg Config, prepare func(*Broker)) (b *Broker, ended <-chan error) {
	t.Helper()
	cfg.Port = -1
	b, err := New(cfg, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() {
		err := b.Run(ctx)
		done <- err
		done <- err
	}()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-b.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	return b, done
}

func TestAStoreThatIsLostEndsTheBroker(t *testing.T) {
	for name, c := range map[string]struct {
		lose func(t *testing.T, b *Broker, ro *atomic.Bool)
		want string
	}{
		"removed": {func(t *testing.T, b *Broker, _ *atomic.Bool) {
			if err := os.RemoveAll(b.cfg.StoreDir); err != nil {
				t.Fatal(err)
			}
		}, "gone"},
		"another folder in its place": {func(t *testing.T, b *Broker, _ *atomic.Bool) {
			if err := os.Rename(b.cfg.StoreDir, b.cfg.StoreDir+".old"); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(b.cfg.StoreDir, 0o755); err != nil {
				t.Fatal(err)
			}
		}, "gone"},
		"read-only": {func(_ *testing.T, _ *Broker, ro *atomic.Bool) { ro.Store(true) }, "cannot be written"},
	} {
		t.Run(name, func(t *testing.T) {
			var ro atomic.Bool
			b, ended := started(t, Config{StoreDir: filepath.Join(t.TempDir(), "store")}, func(b *Broker) {
				b.write = func(path string, size int) error {
					if ro.Load() {
						return syscall.EROFS
					}
					return writeProbe(path, size)
				}
			})
			c.lose(t, b, &ro)
			select {
			case err := <-ended:
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), b.cfg.StoreDir) {
					t.Errorf("%v", err)
				}
			case <-time.After(2 * time.Minute):
				t.Fatal("the broker goes on")
			}
		})
	}
}

func TestTheLimitIsWhatTheDiskHasRoomFor(t *testing.T) {
	var free atomic.Int64
	free.Store(150 << 20)
	b, _ := started(t, Config{StoreDir: t.TempDir()}, func(b *Broker) {
		b.cfg.Free = func(string) (int64, error) { return free.Load(), nil }
	})
	if l := b.Limit(); l < 130<<20 || l > 136<<20 {
		t.Errorf("limit of %d MiB on a disk of 150", l>>20)
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain until %s: %q", what, b.Full())
			}
		}
	}
	free.Store(10 << 20)
	wait("frames are to be refused", func() bool { return strings.Contains(b.Full(), "make room") })
	free.Store(100 << 20)
	wait("frames may come again", func() bool { return b.Full() == "" })

	free.Store(20 << 20)
	small, err := New(Config{StoreDir: t.TempDir(), Port: -1}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	small.cfg.Free = b.cfg.Free
	if err := small.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "make room") {
		t.Errorf("%v", err)
	}
}

// A loaded machine may need more than the seconds that nats.go gives it.
var (
	patient = nats.Timeout(time.Minute)
	long    = nats.MaxWait(time.Minute)
)

// withStream is a client that does not give up, of a server that then has stream S of
// subject s.
func withStream(t *testing.T, url string) nats.JetStreamContext {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), patient)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := nc.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.AddStream(&nats.StreamConfig{Name: "S", Subjects: []string{"s"}}, long); err != nil {
		t.Fatal(err)
	}
	return js
}

// TestAServerThatGaveItsStoreUpStartsAgain: a full disk has the server disable its
// store until it is started again.
func TestAServerThatGaveItsStoreUpStartsAgain(t *testing.T) {
	var free atomic.Int64
	free.Store(150 << 20)
	b, _ := started(t, Config{StoreDir: t.TempDir()}, func(b *Broker) {
		b.cfg.Free = func(string) (int64, error) { return free.Load(), nil }
	})
	url := b.ClientURL()
	js := withStream(t, url)
	if _, err := js.Publish("s", []byte("before")); err != nil {
		t.Fatal(err)
	}
	free.Store(1 << 20)
	if err := b.srv.Load().DisableJetStream(); err != nil {
		t.Fatal(err)
	}
	old := b.srv.Load()
	time.Sleep(3 * diskEvery / 2)
	free.Store(100 << 20)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := js.Publish("s", []byte("after"), nats.MsgId("a")); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if b.ClientURL() != url || b.srv.Load() == old {
		t.Errorf("%s, was %s", b.ClientURL(), url)
	}
	if i, err := js.StreamInfo("S", long); err != nil || i.State.Msgs != 2 {
		t.Errorf("%+v, %v", i, err)
	}
}

// TestUsersAreThoseOfNow: what was said of users since the start holds in a server that is
// started again, and so does what is said of them while there is none.
func TestUsersAreThoseOfNow(t *testing.T) {
	var file access.File
	path := filepath.Join(t.TempDir(), "users.yaml")
	seeds := map[string][]byte{}
	add := func(name string) {
		t.Helper()
		key, seed, err := access.NewNKey()
		if err == nil {
			seeds[name] = seed
			err = errors.Join(file.Add(access.User{Name: name, Role: access.Worker, Key: key}), file.Save(path))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add("stays")
	add("goes")
	var free atomic.Int64
	free.Store(150 << 20)
	b, _ := started(t, Config{StoreDir: t.TempDir(), Users: path}, func(b *Broker) {
		b.cfg.Free = func(string) (int64, error) { return free.Load(), nil }
	})
	in := func(name string) bool {
		t.Helper()
		u, err := file.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect(b.ClientURL(), patient, nats.Nkey(u.Key.Public, func(nonce []byte) ([]byte, error) {
			pair, err := nkeys.FromSeed(seeds[name])
			if err != nil {
				return nil, err
			}
			return pair.Sign(nonce)
		}))
		if err == nil {
			nc.Close()
		}
		return err == nil
	}
	goes, err := file.Get("goes")
	goes.Disabled = true
	if err := errors.Join(err, file.Change(goes), file.Save(path)); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the server knows who goes", func() bool { return b.Reloads() == 1 })
	free.Store(1 << 20)
	if err := b.srv.Load().DisableJetStream(); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "there is no server", func() bool { return strings.HasSuffix(b.Full(), "is full") })
	add("comes")
	free.Store(100 << 20)
	eventually.True(t, "the next one knows who comes", func() bool { return b.Reloads() == 2 })
	if !in("stays") || !in("comes") {
		t.Error("somebody is kept out")
	}
	if in("goes") {
		t.Error("who has gone is let in again")
	}
}

// TestABrokerEndsWithoutItsUsers: a disk that does not answer may keep the users' file, too,
// from being read.
func TestABrokerEndsWithoutItsUsers(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users.yaml")
	b, ended := started(t, Config{StoreDir: filepath.Join(t.TempDir(), "store"), Users: users}, func(b *Broker) { b.shutdown = time.Second })
	if err := syscall.Mkfifo(users, 0o600); err != nil { // whose reader waits for somebody who writes
		t.Fatal(err)
	}
	var end *os.File
	eventually.True(t, "the file is being read", func() (ok bool) {
		var err error
		end, err = os.OpenFile(users, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		return err == nil
	})
	defer end.Close()
	if err := os.RemoveAll(b.cfg.StoreDir); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "gone") {
			t.Errorf("%v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("the broker waits for its users")
	}
	b.srv.Load().WaitForShutdown() // it was left
}

// TestUsersChangeInAStoreThatWasMadeSmaller: its streams had more room than it may have now,
// and a server that is to have less than it started with takes no change of users either.
func TestUsersChangeInAStoreThatWasMadeSmaller(t *testing.T) {
	var file access.File
	path := filepath.Join(t.TempDir(), "users.yaml")
	add := func(name string) nkeys.KeyPair {
		t.Helper()
		key, seed, err := access.NewNKey()
		if err == nil {
			err = errors.Join(file.Add(access.User{Name: name, Role: access.Worker, Key: key}), file.Save(path))
		}
		if err != nil {
			t.Fatal(err)
		}
		pair, err := nkeys.FromSeed(seed)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	add("first")
	dir := t.TempDir()
	roomy := func(string) (int64, error) { return 32 << 30, nil }
	for _, most := range []int64{8 << 30, 1 << 30} {
		b, err := New(Config{StoreDir: dir, Port: -1, MaxStore: most, Free: roomy, Users: path}, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		<-b.Ready()
		nc, err := nats.Connect(b.LocalURL(), append(b.Credentials(), patient)...)
		if err != nil {
			t.Fatal(err)
		}
		js, err := nc.JetStream()
		if err != nil {
			t.Fatal(err)
		}
		cfg := &nats.StreamConfig{Name: "A", MaxBytes: most / 4 * 3}
		if _, err = js.AddStream(cfg, long); err != nil {
			_, err = js.UpdateStream(cfg, long)
		}
		if err != nil {
			t.Error(err)
		}
		nc.Close()
		pair := add(fmt.Sprint("of-", most>>30))
		eventually.True(t, "the users are read", func() bool { return b.Reloads() == 1 })
		public, err := pair.PublicKey()
		if err == nil {
			nc, err = nats.Connect(b.ClientURL(), patient, nats.Nkey(public, pair.Sign))
		}
		if err != nil {
			t.Errorf("in a store of %d: %v", most, err)
		} else {
			nc.Close()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// TestAQuotaThatIsUsedUp: the disk has room, and takes nothing. The server is not started
// again before it would find room for what it writes.
func TestAQuotaThatIsUsedUp(t *testing.T) {
	var quota atomic.Int64
	quota.Store(1 << 10)
	var tries atomic.Int32 // that had to find room for more than there is
	b, _ := started(t, Config{StoreDir: t.TempDir()}, func(b *Broker) {
		b.write = func(path string, size int) error {
			if int64(size) > quota.Load() {
				tries.Add(1)
				return syscall.EDQUOT
			}
			return writeProbe(path, size)
		}
	})
	old := b.srv.Load()
	b.stuck.Store(true) // as the server's log says
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain until %s: %q", what, b.Full())
			}
		}
	}
	until("it has looked several times", func() bool { return tries.Load() > 2 })
	if b.srv.Load() != old || !strings.Contains(b.Full(), "quota") {
		t.Errorf("the server is started again: %v, full: %q", b.srv.Load() != old, b.Full())
	}
	quota.Store(1 << 30)
	until("the server is started again", func() bool { return b.srv.Load() != old && b.Full() == "" })
}

// TestAStoreMayBeMadeSmaller: the streams in it were made for a larger one. Before they
// are smaller there is room for another without a limit, such as the one with the lease.
func TestAStoreMayBeMadeSmaller(t *testing.T) {
	dir := t.TempDir()
	for _, most := range []int64{8 << 30, 1 << 30} {
		roomy := func(string) (int64, error) { return 32 << 30, nil } // whatever this disk has
		b, err := New(Config{StoreDir: dir, Port: -1, MaxStore: most, Free: roomy}, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- b.Run(ctx) }()
		<-b.Ready()
		nc, err := nats.Connect(b.ClientURL(), patient)
		if err != nil {
			t.Fatal(err)
		}
		js, err := nc.JetStream()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.AddStream(&nats.StreamConfig{Name: fmt.Sprint("LEASE-", most)}, long); err != nil {
			t.Errorf("a stream without a limit in a store of %d: %v", most, err)
		}
		for _, name := range []string{"A", "B"} { // all of it together
			cfg := &nats.StreamConfig{Name: name, MaxBytes: most / 2}
			if _, err = js.AddStream(cfg, long); err != nil {
				_, err = js.UpdateStream(cfg, long)
			}
			if err != nil {
				t.Errorf("stream %s in a store of %d: %v", name, most, err)
			}
		}
		nc.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

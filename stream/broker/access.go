package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

// openAccount is the account of a server that knows no accounts.
const openAccount = "$G"

// usersEvery is how often the file of users is read: who is taken out of
// it is out within a second.
const usersEvery = 250 * time.Millisecond

// identity is this process's own key, by which its parts connect when the
// broker has users. It is made anew at each start and never leaves memory.
type identity struct {
	public string
	seed   []byte
}

func newIdentity() (*identity, error) {
	key, seed, err := access.NewNKey()
	if err != nil {
		return nil, err
	}
	return &identity{key.Public, seed}, nil
}

func (i *identity) options() []nats.Option {
	return []nats.Option{
		nats.Nkey(i.public, func(nonce []byte) ([]byte, error) {
			pair, err := nkeys.FromSeed(i.seed)
			if err != nil {
				return nil, err
			}
			return pair.Sign(nonce)
		}),
		nats.CustomInboxPrefix(access.Inbox(i.public)),
	}
}

// users reads the file of users.
func (c Config) users() (access.File, error) {
	if c.Users == "" {
		return access.File{}, nil
	}
	return access.Load(c.Users)
}

// serverOptions are the server's options with accounts and users, if there are
// any.
func (b *Broker) serverOptions(f access.File, now time.Time) (*server.Options, error) {
	o, err := b.options()
	if err != nil || b.own == nil {
		return o, err
	}
	conf, err := access.Render(stream.Names{Prefix: b.cfg.Prefix}, f, b.own.public, now)
	if err != nil {
		return nil, err
	}
	if err := o.ProcessConfigString(string(conf)); err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	return o, nil
}

// moveAccount brings the streams of a store to the account that the server will
// look for them in: a store that was made before the first user holds them in
// the account of all. Streams do not know the account that they are in.
func moveAccount(store string, users bool) error {
	from, to := openAccount, access.AccountNM
	if !users {
		from, to = to, from
	}
	from, to = filepath.Join(store, server.JetStreamStoreDir, from), filepath.Join(store, server.JetStreamStoreDir, to)
	if _, err := os.Stat(filepath.Join(from, "streams")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	switch _, err := os.Stat(filepath.Join(to, "streams")); {
	case err == nil:
		return fmt.Errorf("the broker's store has streams in both %s and %s: move one of them away", from, to)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("find the broker's streams: %w", err)
	}
	if err := os.RemoveAll(to); err != nil { // an account without streams
		return fmt.Errorf("move the broker's streams: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move the broker's streams: %w", err)
	}
	return nil
}

// knownUsers are the users as they are in force.
type knownUsers struct {
	file access.File
	at   stamp // of the file, when it was last looked at
	most int64 // bytes that the server may store, which cannot be made less while it runs
}

// watchUsers brings changes of the users' file into force, without touching
// those who stay.
func (b *Broker) watchUsers(ctx context.Context, known *knownUsers) {
	if b.cfg.Users == "" {
		return
	}
	expiry := known.file.NextChange(time.Now())
	tick := time.Tick(usersEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		now, stat := time.Now(), b.stat()
		if stat == known.at && (expiry.IsZero() || now.Before(expiry)) {
			continue
		}
		known.at = stat
		next, err := b.reloadUsers(now, known.most)
		if err != nil {
			b.log.Error().Err(err).Msg("the users' file cannot be used: what it said before stays in force")
		} else {
			known.file, expiry = next, next.NextChange(now)
		}
		b.reloads.Add(1)
	}
}

func (b *Broker) reloadUsers(now time.Time, most int64) (access.File, error) {
	f, err := b.cfg.users()
	if err != nil {
		return f, err
	}
	if b.own == nil {
		if len(f.Users) > 0 {
			b.log.Warn().Msg("there are users now: restart the broker, which has been open until then, to lock it")
		}
		return f, nil
	}
	o, err := b.serverOptions(f, now)
	if err == nil {
		o.JetStreamMaxStore = most
		err = b.srv.Load().ReloadOptions(o)
	}
	if err == nil {
		b.log.Info().Int("users", len(f.Users)).Msg("users have changed")
	}
	return f, err
}

// Reloads is how often a change of the users' file, or the end of an old key, has
// been read since the start; what could not be used counts too.
func (b *Broker) Reloads() int64 { return b.reloads.Load() }

// certsEvery is how often it is said that a certificate ends soon.
const certsEvery = 12 * time.Hour

// watchCerts warns of certificates that end soon, until ctx ends.
func (b *Broker) watchCerts(ctx context.Context) {
	if !b.cfg.TLS.On() {
		return
	}
	tick := time.Tick(certsEvery)
	for {
		now := time.Now()
		all, err := b.cfg.TLS.Expiries()
		if err != nil {
			b.log.Warn().Err(err).Msg("it is not known when this broker's certificates end")
		}
		for _, e := range all {
			if e.Soon(now) {
				b.log.Warn().Str("certificate", e.File).Time("until", e.NotAfter).Int("days", e.Days(now)).
					Msg("the certificate ends soon, and clients will not connect any more: nearmiss tls renew")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

// Expiries says when the listeners' certificates end, for figures and displays.
func (b *Broker) Expiries() ([]access.Expiry, error) { return b.cfg.TLS.Expiries() }

// stamp tells two states of a file apart.
type stamp struct {
	at   time.Time
	size int64
}

func (b *Broker) stat() stamp {
	st, err := os.Stat(b.cfg.Users)
	if err != nil {
		return stamp{}
	}
	return stamp{st.ModTime(), st.Size()}
}

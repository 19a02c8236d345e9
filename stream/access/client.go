package access

import (
	"fmt"
	"net/url"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/nearmiss/nearmiss/stream"
)

// Credentials are how a client proves who it is; all of them are optional.
type Credentials struct {
	// NKey is the file that nearmiss users add wrote.
	NKey string
	// Creds is a NATS credentials file (JWT and seed), for shared clusters.
	Creds string
	// TLS has the CA to trust, and the client's own certificate.
	TLS TLSFiles
}

// Options are the connection options for a broker at server.
func (c Credentials) Options(server string) ([]nats.Option, error) {
	if err := c.TLS.Validate(); err != nil {
		return nil, err
	}
	var opts []nats.Option
	switch {
	case c.NKey != "" && c.Creds != "":
		return nil, fmt.Errorf("give an NKey or a credentials file, not both")
	case c.NKey != "":
		auth, public, err := nkeyOption(c.NKey)
		if err != nil {
			return nil, err
		}
		opts = append(opts, auth, nats.CustomInboxPrefix(Inbox(public)))
	case c.Creds != "":
		opts = append(opts, nats.UserCredentials(c.Creds))
	default:
		// A client with a name of its own has an inbox of its own, too.
		if u, err := url.Parse(server); err == nil && u.User != nil && stream.ValidToken(u.User.Username()) {
			opts = append(opts, nats.CustomInboxPrefix(Inbox(u.User.Username())))
		}
	}
	if c.TLS.CA != "" {
		if _, err := pool(c.TLS.CA); err != nil { // now, with a name, and not at every try
			return nil, err
		}
		opts = append(opts, nats.RootCAs(c.TLS.CA))
	}
	if c.TLS.Cert != "" {
		opts = append(opts, nats.ClientCert(c.TLS.Cert, c.TLS.Key))
	}
	return opts, nil
}

func nkeyOption(file string) (nats.Option, string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, "", fmt.Errorf("read the key: %w", err)
	}
	pair, err := nkeys.ParseDecoratedNKey(b)
	if err != nil {
		return nil, "", fmt.Errorf("%s holds no NKey seed: use the file that nearmiss users add wrote", file)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, "", fmt.Errorf("key %s: %w", file, err)
	}
	// The file is not read again: after a rotation it has another key than the
	// one that this client says it has, which is good until the overlap ends.
	return nats.Nkey(public, pair.Sign), public, nil
}

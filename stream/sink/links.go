package sink

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/stream"
)

// Links are addresses of pictures that whoever has one may open for [LinkAge]:
// the servers of chats and mailboxes cannot sign in at the console. Such an address
// holds a signature and no secret, and is of one picture of one event. The sinks
// sign it, and the console serves what is behind it; both know the keys.
type Links struct {
	// Key says where the keys are, file:PATH or env:NAME: one or several as
	// [NewLinkKey] makes them, separated by blanks. The first signs and all verify,
	// so that one is replaced while addresses of the other are still out.
	Key string
	// Now is the time. Default time.Now; tests replace it.
	Now func() time.Time
}

const (
	// LinkAge is for how long a link leads somewhere.
	LinkAge = 7 * 24 * time.Hour
	// linkPath is where the console serves what links lead to.
	linkPath = "/api/v1/pictures/"
	// keyBytes is the least length of a key.
	keyBytes = 32
)

// Why a link leads nowhere.
var (
	ErrNoLinks     = errors.New("there are no links to pictures here: no key is named")
	ErrBadLink     = errors.New("the link is not one that this installation made")
	ErrLinkExpired = errors.New("the link's time is over")
)

func (l *Links) now() time.Time {
	if l.Now != nil {
		return l.Now()
	}
	return time.Now()
}

// keys reads the keys, anew each time: they may be replaced while the process runs.
// Errors do not contain them.
func (l *Links) keys() ([][]byte, error) {
	if l == nil || l.Key == "" {
		return nil, ErrNoLinks
	}
	text, err := readSecret(l.Key)
	if err != nil {
		return nil, fmt.Errorf("the key of links to pictures: %w", err)
	}
	var keys [][]byte
	for field := range strings.FieldsSeq(text) {
		k, err := linkKey(field)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("the key of links to pictures: there is none")
	}
	return keys, nil
}

func linkKey(text string) ([]byte, error) {
	k, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(k) < keyBytes {
		return nil, fmt.Errorf("the key of links to pictures: not %d bytes or more in base64", keyBytes)
	}
	return k, nil
}

// Check says why links could not be made.
func (l *Links) Check() error {
	_, err := l.keys()
	return err
}

// Picture is the address of an event's picture at a console, whose own address
// ends before api/v1. Empty where the event has no pictures.
func (l *Links) Picture(console string, e stream.Event, name string) (string, error) {
	if e.Pictures == "" {
		return "", nil
	}
	keys, err := l.keys()
	if err != nil {
		return "", err
	}
	until := l.now().Add(LinkAge).Unix()
	q := url.Values{"e": {strconv.FormatInt(until, 10)}, "s": {signLink(keys[0], e.Detector, e.ID, name, until)}}
	return strings.TrimRight(console, "/") + linkPath + url.PathEscape(e.Detector) + "/" + url.PathEscape(e.ID) + "/" + url.PathEscape(name) + "?" + q.Encode(), nil
}

// Verify says whether a link leads to a picture: nil, [ErrNoLinks], [ErrBadLink] or
// [ErrLinkExpired]. The parameters are those of the link's query.
func (l *Links) Verify(detector, event, name string, q url.Values) error {
	keys, err := l.keys()
	if err != nil {
		return err
	}
	until, err := strconv.ParseInt(q.Get("e"), 10, 64)
	if err != nil {
		return ErrBadLink
	}
	good := false
	for _, k := range keys { // each: which one it was shows in no time
		if hmac.Equal([]byte(q.Get("s")), []byte(signLink(k, detector, event, name, until))) {
			good = true
		}
	}
	switch {
	case !good:
		return ErrBadLink
	case l.now().Unix() > until:
		return ErrLinkExpired
	}
	return nil
}

// signLink signs what a link is of. Quoted, one part cannot reach into the next.
func signLink(key []byte, detector, event, name string, until int64) string {
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "nearmiss picture 1 %q %q %q %d", detector, event, name, until)
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// CheckConsole says why links could not begin with an address.
func CheckConsole(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("links to pictures need the console's address as the receiver reaches it, such as https://nearmiss.example.org, in console")
	}
	return nil
}

// LinkKeyFile is the file of the keys below a data folder.
func LinkKeyFile(data string) string { return filepath.Join(data, "auth", "links.key") }

// NewLinkKey writes a new key into a file, before the one that signed until now,
// which goes on verifying; older ones go. With drop that goes, too: all links that
// are out lead nowhere from then on.
func NewLinkKey(path string, drop bool) error {
	k := make([]byte, keyBytes)
	if _, err := rand.Read(k); err != nil {
		return fmt.Errorf("make a key of links: %w", err)
	}
	text := base64.StdEncoding.EncodeToString(k) + "\n"
	if !drop {
		before, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make a key of links: %w", err)
		}
		if fields := strings.Fields(string(before)); len(fields) > 0 {
			if _, err := linkKey(fields[0]); err == nil { // one that is damaged has signed nothing
				text += fields[0] + "\n"
			}
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make a key of links: %w", err)
	}
	if err := renameio.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("make a key of links: %w", err)
	}
	return nil
}

// EnsureLinkKey makes a key where there is none.
func EnsureLinkKey(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return NewLinkKey(path, false)
}

package backbone

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// PullOptions adjust [Pull]. The zero value checks no digest and reports
// nothing.
type PullOptions struct {
	// SHA256 is the wanted digest in hexadecimal; empty: any content is taken,
	// and the caller shows the digest Pull returns.
	SHA256 string
	// Progress is called after every block with the bytes on disk and the total,
	// −1 if the server does not tell. Nil: no reports.
	Progress func(done, total int64)
	// Attempts is how often an interrupted transfer is resumed; 0: 5.
	Attempts int
	// MaxBytes refuses a larger file; 0: 16 GiB.
	MaxBytes int64
	// Client is used for the requests; nil: http.DefaultClient.
	Client *http.Client
}

// ErrDigest is wrapped when the content that was received is not the one that
// was asked for.
var ErrDigest = errors.New("SHA-256 mismatch")

// Pull downloads url to the file dst and returns the SHA-256 of its content in
// hexadecimal. The transfer goes to dst + ".part", is resumed with a Range
// request after an interruption (also one of an earlier process), and is
// renamed to dst only when it is complete and its digest is right, so dst is
// never half a file. On a digest mismatch the partial file is removed.
func Pull(ctx context.Context, url, dst string, o PullOptions) (digest string, err error) {
	o.Attempts = cmp.Or(o.Attempts, 5)
	o.MaxBytes = cmp.Or(o.MaxBytes, 16<<30)
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	want := strings.ToLower(strings.TrimSpace(o.SHA256))
	if raw, err := hex.DecodeString(want); want != "" && (err != nil || len(raw) != sha256.Size) {
		return "", fmt.Errorf("pull %s: the wanted SHA-256 %q is not 64 hexadecimal digits", url, o.SHA256)
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return "", fmt.Errorf("pull %s: %w", url, err)
	}
	f, err := os.OpenFile(dst+".part", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", url, err)
	}
	defer f.Close()
	p := &pull{o: o, url: url, f: f, sum: sha256.New()}
	if p.done, err = io.Copy(p.sum, f); err != nil { // what an earlier process left
		return "", fmt.Errorf("pull %s: read %s: %w", url, f.Name(), err)
	}

	wait := backoff.WithContext(backoff.WithMaxRetries(backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(200*time.Millisecond),
		backoff.WithMaxInterval(10*time.Second),
	), uint64(o.Attempts-1)), ctx)
	if err := backoff.Retry(func() error { return p.attempt(ctx) }, wait); err != nil {
		return "", fmt.Errorf("pull %s: %w (%d bytes are kept in %s; run it again to go on)", url, err, p.done, f.Name())
	}

	digest = hex.EncodeToString(p.sum.Sum(nil))
	if want != "" && digest != want {
		_ = os.Remove(f.Name())
		return digest, fmt.Errorf("pull %s: %w: got %s, want %s; the file was discarded", url, ErrDigest, digest, want)
	}
	if err := f.Sync(); err != nil {
		return digest, fmt.Errorf("pull %s: %w", url, err)
	}
	if err := os.Rename(f.Name(), dst); err != nil {
		return digest, fmt.Errorf("pull %s: %w", url, err)
	}
	return digest, nil
}

// pull is the state of one download across attempts.
type pull struct {
	o    PullOptions
	url  string
	f    *os.File
	sum  hash.Hash
	done int64
	etag string // of the first response: a resumed body must be of the same file
}

// attempt requests what is missing. Its error is permanent when asking again
// cannot help.
func (p *pull) attempt(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return backoff.Permanent(err)
	}
	if p.done > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(p.done, 10)+"-")
		if p.etag != "" {
			req.Header.Set("If-Range", p.etag)
		}
	}
	resp, err := p.o.Client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	total := int64(-1)
	switch {
	case resp.StatusCode == http.StatusOK:
		if err := p.restart(); err != nil {
			return backoff.Permanent(err)
		}
		total = resp.ContentLength
	case resp.StatusCode == http.StatusPartialContent:
		from, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || from != p.done {
			if err := p.restart(); err != nil {
				return backoff.Permanent(err)
			}
			return fmt.Errorf("the server answered with the range %q, starting again", resp.Header.Get("Content-Range"))
		}
		total = size
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		// Either complete already, or the file is another one now.
		if _, size, _ := contentRange(resp.Header.Get("Content-Range")); size == p.done {
			return nil
		}
		if err := p.restart(); err != nil {
			return backoff.Permanent(err)
		}
		return errors.New("the partial file does not fit the remote one, starting again")
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusRequestTimeout:
		return fmt.Errorf("the server answered %s", resp.Status)
	default:
		return backoff.Permanent(fmt.Errorf("the server answered %s", resp.Status))
	}
	if tag := resp.Header.Get("ETag"); strings.HasPrefix(tag, `"`) { // a strong one
		p.etag = tag
	}
	if total > p.o.MaxBytes {
		return backoff.Permanent(fmt.Errorf("the file has %d bytes, more than the limit of %d", total, p.o.MaxBytes))
	}

	buf := make([]byte, 1<<18)
	for {
		n, err := resp.Body.Read(buf)
		if p.done+int64(n) > p.o.MaxBytes {
			return backoff.Permanent(fmt.Errorf("more than the limit of %d bytes arrived", p.o.MaxBytes))
		}
		if _, werr := p.f.WriteAt(buf[:n], p.done); werr != nil {
			return backoff.Permanent(werr)
		}
		p.sum.Write(buf[:n])
		p.done += int64(n)
		if p.o.Progress != nil && n > 0 {
			p.o.Progress(p.done, total)
		}
		if err == io.EOF {
			break
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	if total >= 0 && p.done != total {
		return fmt.Errorf("the transfer ended at %d of %d bytes", p.done, total)
	}
	return nil
}

// restart forgets what has been received.
func (p *pull) restart() error {
	p.done = 0
	p.sum.Reset()
	return p.f.Truncate(0)
}

// contentRange parses "bytes 5-9/10" and "bytes */10".
func contentRange(s string) (from, size int64, ok bool) {
	s, found := strings.CutPrefix(s, "bytes ")
	span, total, cut := strings.Cut(s, "/")
	if !found || !cut {
		return 0, -1, false
	}
	size = -1
	if total != "*" {
		if n, err := strconv.ParseInt(total, 10, 64); err == nil {
			size = n
		}
	}
	first, _, _ := strings.Cut(span, "-")
	from, err := strconv.ParseInt(first, 10, 64)
	return from, size, err == nil
}

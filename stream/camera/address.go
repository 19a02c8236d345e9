package camera

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/nearmiss/nearmiss/internal/redact"
)

// videoFiles are the file names' ends by which a video is known.
var videoFiles = []string{
	".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".mjpeg", ".mjpg", ".wmv", ".flv", ".3gp", ".3g2",
	".h264", ".h265", ".hevc", ".264", ".265", ".ogv", ".asf", ".vob", ".mxf",
}

// protocols are those that ffmpeg may use for a stream of each scheme: a
// playlist from the network, or what a server redirects to, must not open files
// of this machine or other services. A file may open files.
var protocols = map[string]string{
	"rtsp": "rtp,udp,tcp,tls,srtp", "rtsps": "rtp,udp,tcp,tls,srtp",
	"rtmp": "rtmp,tcp", "rtmps": "rtmps,tls,tcp", "udp": "udp", "rtp": "rtp,udp", "srt": "srt", "tcp": "tcp",
	"http": "http,https,httpproxy,tcp,tls,crypto", "https": "http,https,httpproxy,tcp,tls,crypto",
}

// fileProtocols are those of a file.
const fileProtocols = "file,crypto,data"

// IsAddress says whether a source is a URL, and not a file or a folder.
func IsAddress(source string) bool { return strings.Contains(source, "://") }

// scheme is that of an address, in lower case.
func scheme(address string) string {
	s, _, _ := strings.Cut(address, "://")
	return strings.ToLower(s)
}

// CheckAddress says what is wrong with a URL, without showing it.
func CheckAddress(source string) error {
	s := scheme(source)
	if _, ok := protocols[s]; !ok {
		known := slices.Sorted(maps.Keys(protocols))
		return fmt.Errorf("address %s: a camera's begins with one of %s, followed by ://", redacted(source), strings.Join(known, ", "))
	}
	u, err := url.Parse(source)
	// The text of the error would show the password. What follows a # is never
	// sent; where there is an @ in it, it was meant to be a password's.
	if err != nil || u.Host == "" || strings.Contains(u.Fragment, "@") {
		return fmt.Errorf("address %s cannot be read: in a user's name or password write %%23 for #, %%40 for @, %%2F for /, %%3F for ?, %%3A for : and %%25 for %%", redacted(source))
	}
	return nil
}

// IsVideo says whether a source is one for [Video], by its name.
func IsVideo(source string) bool {
	if !IsAddress(source) {
		return strings.HasPrefix(source, "/dev/") || slices.Contains(videoFiles, strings.ToLower(filepath.Ext(source)))
	}
	if s := scheme(source); s != "http" && s != "https" {
		return true
	}
	u, err := url.Parse(source)
	if err != nil {
		return false
	}
	ext := strings.ToLower(path.Ext(u.Path)) // motion JPEG is for Web
	return ext == ".m3u8" || ext == ".mpd" || slices.Contains(videoFiles, ext) && !strings.HasPrefix(ext, ".mj")
}

// hidden stands for what is not shown, as in package redact.
const hidden = "xxxxx"

// harmless are the parameters of an address whose values may be shown: they
// tell one stream of a camera from another.
var harmless = []string{
	"channel", "chn", "ch", "cam", "camera", "id", "stream", "streamtype", "subtype", "substream", "profile", "action", "cmd",
	"resolution", "width", "height", "size", "quality", "compression", "fps", "framerate", "rate", "snapshot", "format",
}

// parameter is one of an address's query, as it is written there.
type parameter struct {
	name, value string
	secret      bool
}

func parameters(query string) (out []parameter) {
	for _, part := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, ok := strings.Cut(part, "=")
		if !ok { // a value without a name
			name, value = "", part
		}
		out = append(out, parameter{name, value, !slices.Contains(harmless, strings.ToLower(name))})
	}
	return out
}

// redacted is a source as it may be shown and stored: without the password, and
// without the values of parameters that may be secrets. A file's name stays as
// it is.
func redacted(source string) string {
	if !IsAddress(source) {
		return source
	}
	shown, query, ok := strings.Cut(redact.Text(source), "?")
	shown, _, _ = strings.Cut(shown, "#")
	if !ok {
		return shown
	}
	query, _, _ = strings.Cut(query, "#")
	var parts []string
	for _, p := range parameters(query) {
		if p.secret {
			p.value = hidden
		}
		if p.name != "" {
			p.value = p.name + "=" + p.value
		}
		parts = append(parts, p.value)
	}
	return shown + "?" + strings.Join(parts, "&")
}

// secretInPath finds secrets that some cameras want within the path, as in
// /user=admin_password=1234_channel=1.sdp.
var secretInPath = regexp.MustCompile(`(?i)(?:pass|pwd|psw|token|auth|key|secret|session)[a-z]*=([^/&_;?]*)`)

// secrets are the parts of a source that must not be shown, in all the forms in
// which a program may print them.
func secrets(source string) []string {
	all := []string{source}
	add := func(v string) {
		if len(v) >= 3 { // shorter ones would tear words apart
			all = append(all, v, url.QueryEscape(v), url.PathEscape(v))
		}
	}
	_, rest, _ := strings.Cut(source, "://")
	if at := strings.LastIndex(rest, "@"); at > 0 { // also of what cannot be read
		all = append(all, rest[:at+1])
		_, password, _ := strings.Cut(rest[:at], ":")
		add(password)
	}
	for _, m := range secretInPath.FindAllStringSubmatch(rest, -1) {
		add(m[1])
	}
	_, query, _ := strings.Cut(rest, "?")
	for _, p := range parameters(query) {
		if p.secret {
			add(p.value)
			if v, err := url.QueryUnescape(p.value); err == nil {
				add(v)
			}
		}
	}
	u, err := url.Parse(source)
	if err != nil {
		return all
	}
	if u.User != nil {
		if p, ok := u.User.Password(); ok {
			add(p)
		}
	}
	return all
}

// clean takes the secrets of a source out of a text.
func clean(text, source string) string {
	if !IsAddress(source) {
		return text
	}
	for i, s := range secrets(source) {
		with := hidden
		if i == 0 {
			with = redacted(source)
		}
		text = strings.ReplaceAll(text, s, with)
	}
	return redact.Text(text)
}

// cleaned is an error whose text has lost the secrets of a source.
type cleaned struct {
	error
	text string
}

func (c cleaned) Error() string { return c.text }
func (c cleaned) Unwrap() error { return c.error }

// cleanError takes the secrets of a source out of an error's text.
func cleanError(err error, source string) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // without the URL
	}
	return cleaned{err, clean(err.Error(), source)}
}

package redact_test

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/nearmiss/nearmiss/internal/redact"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"no address at all: a@b:": "no address at all: a@b:",
		"nats://127.0.0.1:4222":   "nats://127.0.0.1:4222",
		"no broker answers at nats://u:s3cret@h.example:4222: start one": "no broker answers at nats://u:xxxxx@h.example:4222: start one",
		"nats://s3crettoken@h:4222":                                      "nats://xxxxx@h:4222",
		"nats://:s3cret@h:4222":                                          "nats://xxxxx@h:4222",
		"nats://u:s3cret@a:4222,nats://v:s3cret@b:4222":                  "nats://u:xxxxx@b:4222",
		"http://root:s3cret@10.0.0.7/snapshot.jpg":                       "http://root:xxxxx@10.0.0.7/snapshot.jpg",
		"http://root:s3#cret@10.0.0.7/a.jpg":                             "http://root:xxxxx@10.0.0.7/a.jpg",
		"http://root:s3@cret@10.0.0.7/a.jpg":                             "http://root:xxxxx@10.0.0.7/a.jpg",
		"http://root:s3/cret@10.0.0.7/a.jpg":                             "http://root:xxxxx@10.0.0.7/a.jpg",
		"http://root:s3?cret@10.0.0.7/a.jpg":                             "http://root:xxxxx@10.0.0.7/a.jpg",
		"http://root:s3%zcret@10.0.0.7/a.jpg":                            "http://root:xxxxx@10.0.0.7/a.jpg",
		"http://root:s3@c/ret@camera/a.jpg":                              "http://root:xxxxx@camera/a.jpg",
		"http://root:12#s3cret@camera":                                   "http://root:xxxxx@camera",
		"http://10.0.0.7/a@2x.jpg":                                       "http://10.0.0.7/a@2x.jpg",
		"http://10.0.0.7:8080/a@2x.jpg":                                  "http://10.0.0.7:8080/a@2x.jpg",
		"http://camera/a@2x.jpg?to=a@b":                                  "http://camera/a@2x.jpg?to=a@b",
		"http://[::1]:80/a@2x.jpg":                                       "http://[::1]:80/a@2x.jpg",
		"http://h/s.jpg?user=root&password=s3cret&x=1":                   "http://h/s.jpg?user=root&password=xxxxx&x=1",
		"http://h/s.jpg?PWD=s3#cret":                                     "http://h/s.jpg?PWD=xxxxx",
		"http://h/s.jpg?access_token=s3cret&sig=s3cret&keyframe=1":       "http://h/s.jpg?access_token=xxxxx&sig=xxxxx&keyframe=1",
		"rtsp://h/user=admin&password=s3cret&channel=1":                  "rtsp://h/user=admin&password=xxxxx&channel=1",
		"rtsp://h/user=admin_password=s3cret_channel=1":                  "rtsp://h/user=admin_password=xxxxx",
		"http://h/p?next=%3Fpassword%3Ds3cret&a=1":                       "http://h/p?next=%3Fpassword%3Dxxxxx&a=1",
		`{"server":"nats://u:s3cret@h","level":"warn"}`:                  `{"server":"nats://u:xxxxx@h","level":"warn"}`,
		"two: rtsp://u:s3cret@h/1 and tls://v:s3cret@h2/2 end":           "two: rtsp://u:xxxxx@h/1 and tls://v:xxxxx@h2/2 end",
	} {
		if got := redact.Text(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
		if got := redact.Text(in); strings.Contains(got, "s3cret") || redact.Text(got) != got {
			t.Errorf("%q became %q, and then %q", in, got, redact.Text(got))
		}
	}
}

func TestError(t *testing.T) {
	plain := errors.New("no secret")
	if redact.Error(nil) != nil || redact.Error(plain) != plain {
		t.Error("an error without a secret is another one")
	}
	err := redact.Error(fmt.Errorf("at nats://u:s3cret@h: %w", plain))
	if err.Error() != "at nats://u:xxxxx@h: no secret" || !errors.Is(err, plain) {
		t.Error(err)
	}
}

// FuzzText: an escaped password never comes through, wherever the URL stands.
func FuzzText(f *testing.F) {
	f.Add("root", "pa#s@w/o?rd", "/a.jpg", "x ")
	f.Add("", "p", "?q=a@b", "")
	f.Add("u", "://", "#", "http://")
	f.Fuzz(func(t *testing.T, user, password, path, before string) {
		secret := "S3CRET" + url.QueryEscape(password) + "S3CRET"
		u := url.URL{Scheme: "rtsp", User: url.UserPassword(user, "S3CRET"+password+"S3CRET"), Host: "10.0.0.7:554", Path: path}
		got := redact.Text(before + u.String())
		if strings.Contains(got, secret) || strings.Contains(got, "S3CRET") && !strings.Contains(before+user+path, "S3CRET") {
			t.Fatalf("%q became %q", before+u.String(), got)
		}
		if again := redact.Text(got); again != got {
			t.Fatalf("%q became %q", got, again)
		}
	})
}

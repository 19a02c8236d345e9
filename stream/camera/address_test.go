package camera

import (
	"strings"
	"testing"
)

func TestSecretsOfAnAddressAreNotShown(t *testing.T) {
	for source, want := range map[string]string{
		"http://root:se%23cr%40t@10.0.0.7/snap.jpg":                             "http://root:xxxxx@10.0.0.7/snap.jpg",
		"http://root:se#cr@t@10.0.0.7/snap.jpg":                                 "http://root:xxxxx@10.0.0.7/snap.jpg",
		"http://root:12#cr@10.0.0.7/snap.jpg?pwd=secret":                        "http://root:xxxxx@10.0.0.7/snap.jpg?pwd=xxxxx",
		"rtsp://root:se/cr?et@10.0.0.7/1":                                       "rtsp://root:xxxxx@10.0.0.7/1",
		"rtsp://root:secr@et@10.0.0.7/1":                                        "rtsp://root:xxxxx@10.0.0.7/1",
		"http://10.0.0.7/snap.cgi?user=admin&password=secret&channel=2":         "http://10.0.0.7/snap.cgi?user=xxxxx&password=xxxxx&channel=2",
		"http://10.0.0.7/snap.cgi?loginuse=admin&loginpas=secret;Resolution=4":  "http://10.0.0.7/snap.cgi?loginuse=xxxxx&loginpas=xxxxx&Resolution=4",
		"http://10.0.0.7/snap.cgi?secret":                                       "http://10.0.0.7/snap.cgi?xxxxx",
		"rtsp://10.0.0.7:554/user=admin_password=secret_channel=1_stream=0.sdp": "rtsp://10.0.0.7:554/user=admin_password=xxxxx",
		"http://10.0.0.7/auth=secret/x.jpg":                                     "http://10.0.0.7/auth=xxxxx",
		"rtsp://10.0.0.7/stream1":                                               "rtsp://10.0.0.7/stream1",
		"10:00:00 a@b.png":                                                      "10:00:00 a@b.png",
		"concat:http://root:secret@a|file:///etc/passwd":                        "concat:http://root:xxxxx@a|file:///etc/passwd",
	} {
		if got := redacted(source); got != want {
			t.Errorf("%s is shown as %s, want %s", source, got, want)
		}
		for _, secret := range []string{"secret", "se#cr@t", "se%23cr%40t", "secr@et"} {
			if strings.Contains(source, secret) && IsAddress(source) {
				if got := clean("cannot open "+source+": no route, used "+secret, source); strings.Contains(got, secret) {
					t.Errorf("%s: a text is shown as %s", source, got)
				}
			}
		}
	}
}

func TestAddressesThatCannotBeMeantAreRefused(t *testing.T) {
	for _, source := range []string{
		"http://root:se#cr@t@10.0.0.7/snap.jpg", "http://root:12#cr@10.0.0.7/snap.jpg", "rtsp://root:a/b@10.0.0.7/1", "http://root:a?b@10.0.0.7/1", "rtsp:///x",
	} {
		err := CheckAddress(source)
		if err == nil || !strings.Contains(err.Error(), "%23") || strings.Contains(err.Error(), ":se") || strings.Contains(err.Error(), "a/b") || strings.Contains(err.Error(), "cr@t") {
			t.Errorf("%s: %v", source, err)
		}
	}
	for _, source := range []string{"file:///etc/passwd", "concat:http://a|file:///etc/passwd", "ftp://a/b.png", "gopher://a", "subfile,,start,0,end,9,,:http://a", "unix://x"} {
		if err := CheckAddress(source); err == nil || !strings.Contains(err.Error(), "rtsp") {
			t.Errorf("%s: %v", source, err)
		}
	}
	for _, source := range []string{"http://root:se%23cr%40t@10.0.0.7/snap.jpg", "https://eye/a@b.jpg", "RTSP://[fe80::1]:554/1#track", "udp://0.0.0.0:5000", "http://eye/?a=b@c"} {
		if err := CheckAddress(source); err != nil {
			t.Errorf("%s: %v", source, err)
		}
	}
}

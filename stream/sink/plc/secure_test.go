package plc

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/stream/sink"
)

// identity writes a certificate of an OPC UA application and its key.
func identity(t *testing.T, name, uri string) (cert, key string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{u}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	for path, b := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// printed are the variables of the server as it prints them.
type printed struct {
	Space     int
	Result    int
	Sequence  uint32
	Score     float64
	Part      string
	Coil      bool
	Heartbeat uint32
}

// asyncua starts a server that speaks encrypted only, and returns its address and
// what it prints.
func asyncua(t *testing.T, python, cert, key, user, password string) (address string, space int, lines <-chan printed) {
	t.Helper()
	for range 3 { // it cannot say which port it has found
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address = "opc.tcp://" + l.Addr().String()
		l.Close()
		cmd := exec.Command(python, filepath.Join("testdata", "opcua_server.py"), address, cert, key, user, password)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		all := make(chan printed, 100_000)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer close(all)
			for s := bufio.NewScanner(out); s.Scan(); {
				var v printed
				if json.Unmarshal(s.Bytes(), &v) == nil {
					all <- v
				}
			}
			_ = cmd.Wait()
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		if first, ok := <-all; ok {
			return address, first.Space, all
		}
	}
	t.Fatal("the server does not start")
	return "", 0, nil
}

// A controller of another maker that speaks encrypted only, by each policy: every
// verdict arrives, and a wrong password is not shown. make opcua runs it; it needs
// Python with asyncua.
func TestAnEncryptedOPCUASession(t *testing.T) {
	python := os.Getenv("NEARMISS_TEST_OPCUA")
	if python == "" {
		t.Skip("needs Python with asyncua: make opcua")
	}
	cert, key := identity(t, "server", "urn:freeopcua:python:server")
	mine, mineKey := identity(t, "client", "urn:nearmiss:client")
	const user, password = "line", "hunter2-hunter2"
	config := func(policy, address string, space int) OPCUA {
		node := func(name string) string { return fmt.Sprintf("ns=%d;s=%s", space, name) }
		return OPCUA{
			URL: address, Policy: policy, CertFile: mine, KeyFile: mineKey, User: user,
			Nodes: Nodes{Result: node("result"), Sequence: node("sequence"), Score: node("score"), Part: node("part"), Coil: node("coil"), Heartbeat: node("heartbeat")},
			Timing: Timing{
				MaxAge: sink.Duration(10 * time.Minute), TimeOut: sink.Duration(time.Minute), Pulse: sink.Duration(time.Hour), Heartbeat: sink.Duration(20 * time.Millisecond),
			},
		}
	}
	wait := func(t *testing.T, lines <-chan printed, what string, is func(printed) bool) printed {
		t.Helper()
		for deadline := time.After(2 * time.Minute); ; {
			select {
			case v, ok := <-lines:
				if !ok {
					t.Fatalf("the server has ended: %s", what)
				}
				if is(v) {
					return v
				}
			case <-deadline:
				t.Fatalf("gave up waiting: %s", what)
			}
		}
	}
	for _, policy := range []string{"", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss"} {
		t.Run("policy "+policy, func(t *testing.T) {
			address, space, lines := asyncua(t, python, cert, key, user, password)
			cfg := config(policy, address, space)
			raw, err := json.Marshal(cfg)
			if err != nil {
				t.Fatal(err)
			}
			wrong, err := OpenOPCUA(sink.Sink{Name: "s", Config: raw}, "another-word")
			if err != nil {
				t.Fatal(err)
			}
			if err := wrong.Send(t.Context(), sink.Notice{Test: true}); err == nil || strings.Contains(err.Error(), "another-word") {
				t.Errorf("a wrong password: %v", err)
			}
			wrong.Close()
			l := newLine(t)
			l.watch(func(s sink.Sink, _ string) (sink.Sender, error) { return OpenOPCUA(s, password) }, cfg)
			wait(t, lines, "the heartbeat begins", func(v printed) bool { return v.Heartbeat > 0 && v.Result == int(None) && !v.Coil })
			for i := range 9 {
				r := []Result{Good, Anomalous, Unreadable}[i%3]
				part := l.score(i, r)
				v := wait(t, lines, "the verdict on "+part, func(v printed) bool { return v.Part == part && v.Sequence == uint32(i+1) && v.Coil == (r == Good) })
				if want := map[Result]float64{Good: 50, Anomalous: 250, Unreadable: 0}[r]; v.Result != int(r) || v.Score != want {
					t.Errorf("%s: %+v", part, v)
				}
			}
		})
	}
}

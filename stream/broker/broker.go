// Package broker runs a nats-server inside this process, for one machine: with
// JetStream for frames, events and releases, and, when asked for, MQTT for
// cameras that speak it and WebSocket for browsers.
package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"

	"github.com/nearmiss/nearmiss/stream/access"
)

// Config of an embedded broker. The zero value of a field means its default.
type Config struct {
	// Host to listen on. Default 127.0.0.1. Any other address needs a user and
	// password, a token, or Anonymous.
	Host string
	// Port for NATS clients; -1 takes a free one. Default 4222.
	Port int
	// MQTTPort and WebSocketPort open these listeners; -1 takes a free one.
	// Default 0: closed.
	MQTTPort, WebSocketPort int
	// StoreDir keeps everything the broker must not forget. Required.
	StoreDir string
	// MaxStore bounds the files in StoreDir in bytes. Without a bound a full
	// disk makes publishes hang; with it they fail at once and recover. Default
	// 16 GiB.
	MaxStore int64
	// MaxMemory bounds memory streams (Nearmiss has none). Default 256 MiB.
	MaxMemory int64
	// MaxPayload bounds one message in bytes; larger frames travel as objects.
	// Default 8 MiB.
	MaxPayload int32
	// User and Password, or Token, that clients must give. Default none.
	User, Password, Token string
	// Users is the file of identities ([access.File]). When it has users, every
	// client must be one of them, in accounts that contain it, and changes of the
	// file are in force within a second. A broker that starts without users stays
	// open until it is started again.
	Users string
	// Prefix is the first token of the subjects that users may use. Default
	// nearmiss.
	Prefix string
	// TLS has the certificate of all listeners. Without one they speak plain TCP.
	TLS access.TLSFiles
	// Origins are the pages that may open a WebSocket ("https://host:port").
	// Without them none may.
	Origins []string
	// Anonymous allows clients without credentials on a Host that others can
	// reach.
	Anonymous bool
	// Name of the server. Default nearmiss.
	Name string
	// Free is the room in bytes that this process has on the disk of a folder; tests
	// say otherwise. Default [FreeBytes].
	Free func(dir string) (int64, error)
}

// maxBuffered is how much the server holds for a stream whose disk is behind.
// With the default, 128 MiB, large releases fail while they are stored.
const maxBuffered = 2 << 30

func (c Config) withDefaults() Config {
	c.Host = cmp.Or(c.Host, "127.0.0.1")
	c.Port = cmp.Or(c.Port, 4222)
	c.MaxStore = cmp.Or(c.MaxStore, 16<<30)
	c.MaxMemory = cmp.Or(c.MaxMemory, 256<<20)
	c.MaxPayload = cmp.Or(c.MaxPayload, 8<<20)
	c.Name = cmp.Or(c.Name, "nearmiss")
	if c.Free == nil {
		c.Free = FreeBytes
	}
	return c
}

// Validate reports every setting that cannot work.
func (c Config) Validate() error {
	d := c.withDefaults()
	var errs []error
	if d.StoreDir == "" {
		errs = append(errs, errors.New("broker: no store folder is configured"))
	}
	for _, p := range []struct {
		what string
		port int
	}{{"port", d.Port}, {"MQTT port", d.MQTTPort}, {"WebSocket port", d.WebSocketPort}} {
		if p.port < -1 || p.port > 65535 {
			errs = append(errs, fmt.Errorf("broker: %s %d: use 1 to 65535, or -1 for a free one", p.what, p.port))
		}
	}
	if d.MaxStore < 64<<20 {
		errs = append(errs, fmt.Errorf("broker: a store of %d bytes is too small: give it 64 MiB or more", d.MaxStore))
	}
	if d.MaxPayload < 64<<10 || d.MaxPayload > 64<<20 {
		errs = append(errs, fmt.Errorf("broker: a payload limit of %d bytes: use 64 KiB to 64 MiB", d.MaxPayload))
	}
	if d.Token != "" && d.User != "" {
		errs = append(errs, errors.New("broker: give a user and password or a token, not both"))
	}
	if (d.User == "") != (d.Password == "") {
		errs = append(errs, errors.New("broker: a user needs a password and a password a user"))
	}
	users, err := d.users()
	if err != nil {
		errs = append(errs, err)
	}
	locked := len(users.Users) > 0 || d.User != "" || d.Token != ""
	if len(users.Users) > 0 && (d.User != "" || d.Token != "") {
		errs = append(errs, errors.New("broker: there are users (nearmiss users list): take the one user, password or token for all out of the configuration"))
	}
	if !isLoopback(d.Host) && !locked && !d.Anonymous {
		errs = append(errs, fmt.Errorf("broker: others can reach %s: add users (nearmiss users add), set a user and password or a token, or allow anonymous clients", d.Host))
	}
	if d.WebSocketPort != 0 && (!locked || len(d.Origins) == 0) {
		errs = append(errs, errors.New("broker: a WebSocket can be opened by any page that a browser on this machine shows: name the pages that may (websocket_origins), and add users or set a password"))
	}
	for _, o := range d.Origins {
		if u, err := url.Parse(o); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" {
			errs = append(errs, fmt.Errorf("broker: %q is not the origin of a page: write https://host or https://host:port", o))
		}
	}
	if err := d.TLS.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("broker: %w", err))
	}
	return errors.Join(errs...)
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// ErrInUse: another broker runs on the store folder.
var ErrInUse = errors.New("another broker uses it: stop that one, or choose another folder")

// Broker is an embedded nats-server.
type Broker struct {
	cfg   Config
	log   zerolog.Logger
	ready chan struct{}
	own   *identity                     // of this process, when there are users
	srv   atomic.Pointer[server.Server] // set before ready is closed, and again when it has to be started again
	limit int64                         // of the store, bytes; set before ready is closed
	full  atomic.Pointer[string]        // why no more frames should be taken
	stuck atomic.Bool                   // a stream that met the full disk takes nothing more until the server is started again

	reloads atomic.Int64 // see Reloads

	// Overridden in tests.
	write    func(path string, size int) error
	shutdown time.Duration // how long a server, and what watches its files, may take to end
}

// New prepares a broker; Run starts it.
func New(cfg Config, log zerolog.Logger) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Broker{cfg: cfg.withDefaults(), log: log.With().Str("component", "broker").Logger(), ready: make(chan struct{}), write: writeProbe, shutdown: 10 * time.Second}, nil
}

// startTimeout covers the recovery of a large store after a crash.
const startTimeout = 5 * time.Minute

// Run serves until ctx ends, then shuts down in order: what was acknowledged is
// on the disk. It can be called once.
func (b *Broker) Run(ctx context.Context) error {
	lock, err := lockStore(b.cfg.StoreDir)
	if err != nil {
		return err
	}
	defer lock.release()
	if err := b.bound(); err != nil {
		return err
	}
	users := knownUsers{at: b.stat()} // before it is read: what changes meanwhile is read again
	if users.file, err = b.cfg.users(); err != nil {
		return err
	}
	if len(users.file.Users) > 0 {
		if b.own, err = newIdentity(); err != nil {
			return err
		}
	}
	if err := moveAccount(b.cfg.StoreDir, b.own != nil); err != nil {
		return err
	}
	for {
		if err := b.serve(ctx, lock, &users); !errors.Is(err, errNoRoom) {
			return err
		}
		b.log.Error().Msg("the disk is full and the server has given its store up: it starts again when there is room")
		if err := b.waitForRoom(ctx, lock); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// serve runs one server until ctx ends or it fails. users are what is known of them, then
// and, once nothing watches their file any more, afterwards.
func (b *Broker) serve(ctx context.Context, lock *storeLock, users *knownUsers) error {
	opts, err := b.serverOptions(users.file, time.Now())
	if err != nil {
		return err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return fmt.Errorf("start broker: %w", err)
	}
	fatal := make(chan string, 1)
	b.stuck.Store(false)
	srv.SetLoggerV2(natsLog{b.log, fatal, &b.stuck}, false, false, false)
	srv.Start()
	known := *users
	known.most = opts.JetStreamMaxStore
	var files sync.WaitGroup
	defer func() {
		down := make(chan struct{})
		go func() {
			srv.Shutdown()
			srv.WaitForShutdown()
			files.Wait()
			close(down)
		}()
		select {
		case <-down:
			*users = known
		case <-time.After(b.shutdown): // its store is gone, or its disk does not answer
			b.log.Error().Msg("the server does not end in time: it is left")
		}
	}()
	for deadline := time.Now().Add(startTimeout); !srv.ReadyForConnections(100 * time.Millisecond); {
		select {
		case <-ctx.Done():
			return nil
		case why := <-fatal:
			if strings.Contains(why, syscall.EADDRINUSE.Error()) {
				why += ": stop what listens there, a broker maybe, or choose another port"
			}
			return fmt.Errorf("start broker with store %s: %s", b.cfg.StoreDir, why)
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("start broker on %s with store %s: not ready after %v (see the log)",
				net.JoinHostPort(b.cfg.Host, strconv.Itoa(b.cfg.Port)), b.cfg.StoreDir, startTimeout)
		}
	}
	if !srv.JetStreamEnabled() {
		return fmt.Errorf("start broker with store %s: JetStream did not start (see the log)", b.cfg.StoreDir)
	}
	again := b.srv.Swap(srv) != nil
	if !again {
		b.pin(srv)
		close(b.ready)
	}
	b.log.Info().Str("url", b.ClientURL()).Str("mqtt", b.MQTTAddr()).Str("websocket", b.WebSocketURL()).
		Str("store", b.cfg.StoreDir).Msg("broker is up")
	watching, enough := context.WithCancel(ctx)
	defer enough()
	files.Go(func() { b.watchUsers(watching, &known) })
	files.Go(func() { b.watchCerts(watching) })
	disk := make(chan error, 1)
	go func() { disk <- b.watchDisk(watching, srv, lock) }()
	stopped := make(chan struct{})
	go func() {
		srv.WaitForShutdown()
		close(stopped)
	}()
	select {
	case <-ctx.Done():
		srv.Shutdown()
		<-stopped
		enough()
		<-disk
		b.log.Info().Msg("broker is down")
		return nil
	case why := <-fatal:
		return fmt.Errorf("broker with store %s gave up: %s", b.cfg.StoreDir, why)
	case err := <-disk:
		if err == nil { // ctx has ended
			return nil
		}
		return fmt.Errorf("broker: %w", err)
	case <-stopped:
		return errors.New("broker stopped by itself (see the log)")
	}
}

// pin keeps the ports that the first server took, for those after it.
func (b *Broker) pin(srv *server.Server) {
	v, err := srv.Varz(nil)
	if err != nil {
		return
	}
	b.cfg.Port = v.Port
	if b.cfg.MQTTPort != 0 {
		b.cfg.MQTTPort = v.MQTT.Port
	}
	if b.cfg.WebSocketPort != 0 {
		b.cfg.WebSocketPort = v.Websocket.Port
	}
}

func (b *Broker) options() (*server.Options, error) {
	c := b.cfg
	o := &server.Options{
		ServerName: c.Name, Host: c.Host, Port: c.Port,
		Username: c.User, Password: c.Password, Authorization: c.Token,
		JetStream: true, StoreDir: filepath.Clean(c.StoreDir),
		JetStreamMaxStore: max(b.limit, b.reserved()+1), JetStreamMaxMemory: c.MaxMemory,
		SyncAlways:            true, // an acknowledged frame survives a power cut
		StreamMaxBufferedSize: maxBuffered,
		MaxPayload:            c.MaxPayload, MaxPending: 256 << 20,
		WriteDeadline: 10 * time.Second,
		NoSigs:        true,
	}
	if c.MQTTPort != 0 {
		o.MQTT.Host, o.MQTT.Port = c.Host, c.MQTTPort
	}
	if c.WebSocketPort != 0 {
		o.Websocket.Host, o.Websocket.Port = c.Host, c.WebSocketPort
		o.Websocket.NoTLS = true
		o.Websocket.AllowedOrigins = c.Origins
	}
	if c.TLS.On() {
		t, err := c.TLS.Server(func(err error) {
			b.log.Error().Err(err).Msg("the certificate cannot be used: the one before stays in force")
		})
		if err != nil {
			return nil, err
		}
		o.TLS, o.TLSTimeout, o.TLSConfig = true, 10, t
		o.TLSVerify = c.TLS.Verify == access.ClientCertsRequired
		if c.MQTTPort != 0 {
			o.MQTT.TLSConfig, o.MQTT.TLSTimeout = t, 10
		}
		if c.WebSocketPort != 0 {
			o.Websocket.TLSConfig, o.Websocket.NoTLS = t, false
		}
	}
	return o, nil
}

// Ready is closed when clients can connect.
func (b *Broker) Ready() <-chan struct{} { return b.ready }

// ClientURL is where NATS clients connect; call it after Ready.
func (b *Broker) ClientURL() string { return b.srv.Load().ClientURL() }

// MQTTAddr is host and port of the MQTT listener, empty when it is closed; call
// it after Ready.
func (b *Broker) MQTTAddr() string {
	if b.cfg.MQTTPort == 0 {
		return ""
	}
	v, err := b.srv.Load().Varz(nil) // the port that was taken, when a free one was asked for
	if err != nil {
		return ""
	}
	return net.JoinHostPort(v.MQTT.Host, strconv.Itoa(v.MQTT.Port))
}

// WebSocketURL is where WebSocket clients connect, empty when it is closed;
// call it after Ready.
func (b *Broker) WebSocketURL() string {
	if b.cfg.WebSocketPort == 0 {
		return ""
	}
	return b.srv.Load().WebsocketURL()
}

// LocalURL is where clients of this process connect, with [Broker.Credentials];
// call it after Ready.
func (b *Broker) LocalURL() string {
	return strings.Replace(b.ClientURL(), "tls://", "nats://", 1)
}

// Credentials are the options that a client of this process needs besides the
// URL. Where others need TLS it connects without the network.
func (b *Broker) Credentials() []nats.Option {
	var local []nats.Option
	if b.cfg.TLS.On() {
		local = append(local, nats.InProcessServer(inProcess{b}))
	}
	return append(local, b.identification()...)
}

// inProcess connects to the server that runs at the time.
type inProcess struct{ b *Broker }

func (p inProcess) InProcessConn() (net.Conn, error) { return p.b.srv.Load().InProcessConn() }

func (b *Broker) identification() []nats.Option {
	switch {
	case b.own != nil:
		return b.own.options()
	case b.cfg.Token != "":
		return []nats.Option{nats.Token(b.cfg.Token)}
	case b.cfg.User != "":
		return []nats.Option{nats.UserInfo(b.cfg.User, b.cfg.Password)}
	default:
		return nil
	}
}

// natsLog gives the server's log lines to zerolog.
type natsLog struct {
	log   zerolog.Logger
	fatal chan<- string // the first reason for which the server cannot serve
	stuck *atomic.Bool
}

func (l natsLog) Noticef(f string, v ...any) { l.log.Debug().Msgf(f, v...) }
func (l natsLog) Warnf(f string, v ...any)   { l.log.Warn().Msgf(f, v...) }
func (l natsLog) Debugf(f string, v ...any)  { l.log.Trace().Msgf(f, v...) }
func (l natsLog) Tracef(f string, v ...any)  { l.log.Trace().Msgf(f, v...) }

// Errorf also learns of streams whose store has met a full disk: there is no other word
// of it (nats-server 2.15, fileStore.setWriteErr).
func (l natsLog) Errorf(f string, v ...any) {
	text := fmt.Sprintf(f, v...)
	if strings.Contains(text, "Critical write error") && (strings.Contains(text, syscall.ENOSPC.Error()) || strings.Contains(text, syscall.EDQUOT.Error())) {
		l.stuck.Store(true)
	}
	l.log.Error().Msg(text)
}

// Fatalf is what the server calls when it cannot listen, expecting the process
// to end.
func (l natsLog) Fatalf(f string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(f, v...):
	default:
		l.log.Error().Msgf(f, v...)
	}
}

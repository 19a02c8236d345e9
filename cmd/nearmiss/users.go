package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
)

type usersCmd struct {
	Add     usersAddCmd     `cmd:"" help:"Add an identity and write its key."`
	List    usersListCmd    `cmd:"" help:"List identities."`
	Rotate  usersRotateCmd  `cmd:"" help:"Give an identity another key."`
	Disable usersDisableCmd `cmd:"" help:"Shut an identity out; --enable lets it in again."`
	Remove  usersRemoveCmd  `cmd:"" help:"Take an identity out for good."`
	Render  usersRenderCmd  `cmd:"" help:"Write the configuration for a nats-server of your own."`
	Durable usersDurableCmd `cmd:"" help:"Make a subscriber's durable subscription on a nats-server of your own."`
	Check   usersCheckCmd   `cmd:"" help:"Connect with a key and try what it must and must not do."`
}

// usersFolder is where identities are kept.
type usersFolder struct {
	Data string `default:"nearmiss-data" env:"NEARMISS_DATA" type:"path" placeholder:"DIR" help:"The broker's data folder."`
}

func (f usersFolder) path() string { return config{Data: f.Data}.usersFile() }

// keyFile is where the seed of a user's key is written.
func (f usersFolder) keyFile(name string) string {
	return filepath.Join(filepath.Dir(f.path()), name+".nk")
}

// there refuses a folder that does not exist, for all that does not set it up.
func (f usersFolder) there() error {
	if _, err := os.Stat(f.Data); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no such folder %s: name the broker's data folder with --data", f.Data)
	}
	return nil
}

// load reads the file of users, for looking.
func (f usersFolder) load() (access.File, error) {
	if err := f.there(); err != nil {
		return access.File{}, err
	}
	return access.Load(f.path())
}

// change lets do work on the file of users and saves it.
func (f usersFolder) change(ctx context.Context, do func(*access.File) error) error {
	if err := f.there(); err != nil {
		return err
	}
	return access.Update(ctx, f.path(), do, func() error { return nil })
}

// give is change for what makes a key: the user gets it before anybody changes the file
// again. It returns what is to be said of that.
func (f usersFolder) give(ctx context.Context, do func(*access.File) (write func() (string, error), err error)) (done string, err error) {
	var write func() (string, error)
	err = access.Update(ctx, f.path(), func(file *access.File) (err error) {
		write, err = do(file)
		return err
	}, func() (err error) {
		done, err = write()
		return err
	})
	return done, err
}

// secret makes a key for u and sets the public half. write gives the private
// half to the user, once the public one is saved, and says how to use it.
func (f usersFolder) secret(u *access.User) (write func() (string, error), err error) {
	if u.MQTT {
		var password string
		if u.Key, password, err = access.NewPassword(); err != nil {
			return nil, err
		}
		return func() (string, error) {
			return fmt.Sprintf("MQTT user %s, password %s (shown once)", u.Name, password), nil
		}, nil
	}
	key, seed, err := access.NewNKey()
	if err != nil {
		return nil, err
	}
	u.Key = key
	return func() (string, error) {
		path := f.keyFile(u.Name)
		text := fmt.Sprintf("# Nearmiss %s %s. Keep it secret.\n%s\n", u.Role, u.Name, seed)
		if err := renameio.WriteFile(path, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("%s has a new key, which could not be written: mend that, then nearmiss users rotate: %w", u.Name, err)
		}
		return fmt.Sprintf("%s: bring it to the machine, and start its command with --nkey %s", path, filepath.Base(path)), nil
	}, nil
}

type usersAddCmd struct {
	Role     string   `arg:"" enum:"camera,subscriber,worker,trainer,sinks,control,operator,console,setup,metrics" help:"Role: ${enum}."`
	Name     string   `arg:"" help:"Name of the machine."`
	Detector string   `placeholder:"NAME" help:"Detector that it is confined to (cameras must name one)."`
	Camera   string   `placeholder:"NAME" help:"Camera name, where it is not the identity's."`
	Kinds    []string `name:"kind" placeholder:"KIND" help:"Event kind that a subscriber gets; may be repeated (default: all)."`
	Live     bool     `help:"A subscriber that gets events as they come, and none of those that came while it was away."`
	Large    bool     `help:"A camera whose images may be above the broker's payload limit (8 MiB)."`
	MQTT     bool     `name:"mqtt" help:"A camera that logs in over MQTT with name and password."`
	bundleFlags
	usersFolder
}

func (*usersAddCmd) Help() string {
	return "Each machine has one identity, which may do what its role needs and nothing else. The broker takes changes within a second; " +
		"the first identity locks a broker that was open, at its next start.\n\n" +
		examples(
			"nearmiss users add operator desk",
			"nearmiss users add camera line1 --detector bolts",
			"nearmiss users add worker w1 --bundle w1   # then bring the folder w1 to its machine",
			"nearmiss users add camera phone --detector bolts --mqtt",
			"nearmiss users add subscriber lamp --detector bolts --kind anomaly",
		)
}

func (c *usersAddCmd) Run(ctx context.Context, o *output) error {
	u := access.User{
		Name: c.Name, Role: access.Role(c.Role), Detector: c.Detector, Camera: c.Camera, Kinds: c.Kinds,
		Live: c.Live, Large: c.Large, MQTT: c.MQTT, Created: time.Now().UTC().Truncate(time.Second),
	}
	if err := c.fits(u); err != nil {
		return err
	}
	done, err := c.give(ctx, func(f *access.File) (func() (string, error), error) {
		write, err := c.secret(&u)
		if err == nil {
			err = f.Add(u)
		}
		if err != nil {
			err = usageError{oneLine(err)}
		}
		return write, err
	})
	if err != nil {
		return err
	}
	return c.bundled(o, c.usersFolder, u, done)
}

type usersListCmd struct {
	JSON bool `name:"json" help:"Print one JSON object an identity."`
	usersFolder
}

func (*usersListCmd) Help() string {
	return examples("nearmiss users list", "nearmiss users list --json")
}

func (c *usersListCmd) Run(o *output) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if len(f.Users) == 0 && !c.JSON {
		return o.print("there are no users: whoever reaches the broker may do everything (nearmiss users add)")
	}
	return list(o, c.JSON, f.Users, func(u access.User) string {
		where := u.Detector
		if u.Role == access.Camera {
			where += "/" + u.CameraName()
		}
		notes := []string{}
		if u.MQTT {
			notes = append(notes, "MQTT")
		}
		if u.Large {
			notes = append(notes, "large frames")
		}
		if u.Live {
			notes = append(notes, "live")
		}
		if u.Old != nil && time.Now().Before(u.OldUntil) {
			notes = append(notes, "old key good until "+u.OldUntil.Local().Format(time.DateTime))
		}
		if u.Disabled {
			notes = append(notes, "disabled")
		}
		return strings.TrimRight(fmt.Sprintf("%-24s %-11s %-24s %s", u.Name, u.Role, where, strings.Join(notes, ", ")), " ")
	})
}

type usersRotateCmd struct {
	Name    string        `arg:"" help:"Identity."`
	Overlap time.Duration `default:"24h" help:"How long the old key stays valid (MQTT passwords change at once)."`
	bundleFlags
	usersFolder
}

func (*usersRotateCmd) Help() string {
	return examples("nearmiss users rotate line1", "nearmiss users rotate line1 --overlap 0s")
}

func (c *usersRotateCmd) Run(ctx context.Context, o *output) error {
	if err := c.there(); err != nil {
		return err
	}
	var u access.User
	done, err := c.give(ctx, func(f *access.File) (write func() (string, error), err error) {
		if u, err = f.Get(c.Name); err != nil {
			return nil, err
		}
		if err := c.fits(u); err != nil {
			return nil, err
		}
		before := u.Key
		if write, err = c.secret(&u); err != nil {
			return nil, err
		}
		u.Old, u.OldUntil = nil, time.Time{}
		if !u.MQTT && c.Overlap > 0 {
			u.Old, u.OldUntil = &before, time.Now().Add(c.Overlap).UTC().Truncate(time.Second)
		}
		return write, f.Change(u)
	})
	if err != nil {
		return err
	}
	return c.bundled(o, c.usersFolder, u, done)
}

type usersDisableCmd struct {
	Name   string `arg:"" help:"Identity."`
	Enable bool   `help:"Let it in again."`
	usersFolder
}

func (*usersDisableCmd) Help() string { return examples("nearmiss users disable line1") }

func (c *usersDisableCmd) Run(ctx context.Context, o *output) error {
	err := c.change(ctx, func(f *access.File) error {
		u, err := f.Get(c.Name)
		if err != nil {
			return err
		}
		u.Disabled = !c.Enable
		return f.Change(u)
	})
	if err != nil {
		return err
	}
	return o.print(c.Name + map[bool]string{false: " is out within a second", true: " may come in again"}[c.Enable])
}

type usersRemoveCmd struct {
	Name string `arg:"" help:"Identity."`
	usersFolder
}

func (*usersRemoveCmd) Help() string { return examples("nearmiss users remove line1") }

func (c *usersRemoveCmd) Run(ctx context.Context, o *output) error {
	if err := c.change(ctx, func(f *access.File) error { return f.Remove(c.Name) }); err != nil {
		return err
	}
	if err := os.Remove(c.keyFile(c.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is out; remove its key yourself: %w", c.Name, err)
	}
	return o.print(c.Name + " is out within a second")
}

type usersRenderCmd struct {
	Out    string `placeholder:"FILE" help:"File to write (default: standard output)."`
	Prefix string `default:"nearmiss" env:"NEARMISS_PREFIX" help:"First token of every subject."`
	usersFolder
}

func (*usersRenderCmd) Help() string {
	return "The configuration has accounts, users and rights. Include it in the server's own, and reload the server after each change:\n" +
		"the old key of a rotation is left out once it has expired, so render again then.\n\n" +
		examples("nearmiss users render --out auth.conf   # nats.conf: include auth.conf", "nats-server --signal reload")
}

func (c *usersRenderCmd) Run(o *output) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	if len(f.Users) == 0 {
		return fmt.Errorf("%s has no users: add them first (nearmiss users add)", c.path())
	}
	b, err := access.Render(stream.Names{Prefix: c.Prefix}, f, "", time.Now())
	if err != nil {
		return err
	}
	if c.Out == "" {
		_, err = o.Out.Write(b)
		return err
	}
	if err := renameio.WriteFile(c.Out, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", c.Out, err)
	}
	return o.printf("%s has %d users\n", c.Out, len(f.Users))
}

type usersCheckCmd struct {
	Name string `arg:"" help:"Identity, whose key is given by --nkey."`
	serverFlags
	usersFolder
}

func (*usersCheckCmd) Help() string {
	return "It changes nothing: allowed subjects are only subscribed to, and what is published on forbidden ones is refused by the broker.\n\n" +
		examples("nearmiss users check line1 --nkey nearmiss-data/auth/line1.nk")
}

// forbidden is what no identity may publish or, with "sub ", subscribe.
var forbidden = []string{
	"$JS.API.STREAM.DELETE.NM_EVENTS", "$JS.API.STREAM.CREATE.NM_X", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.SNAPSHOT.NM_FRAMES",
	"$SYS.REQ.USER.X", "_INBOX.x", "sub >", "sub _INBOX.>", "sub $JS.>", "sub $KV.>",
}

func (c *usersCheckCmd) Run(o *output) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	u, err := f.Get(c.Name)
	if err != nil {
		return err
	}
	if u.MQTT {
		return usageError{errors.New("an MQTT user has no NATS connection to check: publish a frame with its password")}
	}
	c.NKey = cmp.Or(c.NKey, c.keyFile(u.Name))
	failed := 0
	check := func(subject string, want bool) error {
		ok, err := c.probe(o, subject)
		if err != nil {
			return err
		}
		what := map[bool]string{true: "allowed", false: "refused"}[ok]
		if ok != want {
			failed++
			what = "WRONG: " + what
		}
		return o.printf("%-60s %s\n", subject, what)
	}
	for _, s := range u.Rights(c.names()).Subscribe {
		if err := check("sub "+s, true); err != nil {
			return err
		}
	}
	for _, s := range forbidden {
		if err := check(s, false); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d rights of %s are wrong: was the broker's configuration rendered from this file?", failed, u.Name)
	}
	return nil
}

// probe says whether the broker allows one subject, on a connection of its own.
func (c *usersCheckCmd) probe(o *output, what string) (bool, error) {
	quiet := &output{Out: o.Out, Err: o.Err, Log: o.Log.Level(6)} // refusals are what is looked for
	nc, err := c.connect("check", quiet)
	if err != nil {
		return false, err
	}
	defer nc.Close()
	if s, ok := strings.CutPrefix(what, "sub "); ok {
		_, err = nc.SubscribeSync(s)
	} else {
		err = nc.Publish(what, nil)
	}
	if err == nil {
		err = nc.FlushTimeout(10 * time.Second)
	}
	if err == nil {
		err = nc.LastError()
	}
	if errors.Is(err, nats.ErrPermissionViolation) {
		return false, nil
	}
	return true, err
}

type usersDurableCmd struct {
	Name string `arg:"" help:"Subscriber."`
	serverFlags
	usersFolder
}

func (*usersDurableCmd) Help() string {
	return "The embedded broker does this by itself. With a nats-server of your own an operator does it once.\n\n" +
		examples("nearmiss users durable lamp --server nats://nats.example.org --nkey desk.nk")
}

func (c *usersDurableCmd) Run(ctx context.Context, o *output) error {
	f, err := c.load()
	if err != nil {
		return err
	}
	u, err := f.Get(c.Name)
	if err != nil {
		return err
	}
	if u.Role != access.Subscriber || u.Live {
		return usageError{fmt.Errorf("%s is not a subscriber with a durable subscription", c.Name)}
	}
	err = c.withJetStream("users", o, func(js jetstream.JetStream) error {
		return stream.EnsureDurable(ctx, js, durableOf(c.names(), u))
	})
	if err != nil {
		return err
	}
	return o.print(u.Name + " gets its events by nearmiss watch --durable " + u.Name + " --js-api-prefix " + access.SubscriberAPIPrefix)
}

func durableOf(n stream.Names, u access.User) stream.Durable {
	return stream.Durable{Names: n, Name: u.Name, Detector: u.Detector, Kinds: u.Kinds}
}

// keepDurables makes the subscribers' consumers, now and when the file of users
// changes, until ctx ends.
func keepDurables(ctx context.Context, js jetstream.JetStream, conf config, o *output) {
	path := conf.usersFile()
	made := map[string]bool{}
	for tick := time.Tick(time.Second); ctx.Err() == nil; {
		f, err := access.Load(path)
		for _, u := range f.Users {
			if err != nil || u.Role != access.Subscriber || u.Live || u.Disabled || made[u.Name] {
				continue
			}
			step, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := stream.EnsureDurable(step, js, durableOf(stream.Names{Prefix: conf.Prefix}, u))
			cancel()
			if err != nil {
				o.Log.Warn().Err(err).Msg("a subscriber has no subscription yet")
				continue
			}
			made[u.Name] = true
		}
		select {
		case <-ctx.Done():
		case <-tick:
		}
	}
}

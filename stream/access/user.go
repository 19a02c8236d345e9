package access

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/nearmiss/nearmiss/stream"
)

// Role of a machine.
type Role string

// The roles.
const (
	Camera     Role = "camera"     // publishes the frames of one detector's camera, and nothing else
	Subscriber Role = "subscriber" // gets events, from a durable consumer of its own or live
	Worker     Role = "worker"     // scores frames
	Trainer    Role = "trainer"    // learns, and makes releases
	Sinks      Role = "sinks"      // brings events to people and machines outside
	Control    Role = "control"    // changes detectors and releases, for those who ask it
	Operator   Role = "operator"   // the command line: reads, asks control, brings normals and releases
	Console    Role = "console"    // the page for operators: what operator may, and the people who sign in
	Setup      Role = "setup"      // creates streams and buckets
	Metrics    Role = "metrics"    // reads the server's own figures, in the system account
)

// Roles are all roles, in the order in which they are listed.
var Roles = []Role{Camera, Subscriber, Worker, Trainer, Sinks, Control, Operator, Console, Setup, Metrics}

// User is one machine's identity.
type User struct {
	// Name is 1 to 64 letters, digits, - and _.
	Name string `yaml:"name" json:"name"`
	Role Role   `yaml:"role" json:"role"`
	// Detector that a camera, worker or subscriber is confined to. Empty: all
	// detectors; a camera must name one.
	Detector string `yaml:"detector,omitempty" json:"detector,omitempty"`
	// Camera is the camera's name. Default: the user's.
	Camera string `yaml:"camera,omitempty" json:"camera,omitempty"`
	// Kinds of events that a subscriber gets. Empty: all kinds.
	Kinds []string `yaml:"kinds,omitempty" json:"kinds,omitempty"`
	// Live subscribers get events and scores as they come and miss what comes
	// while they are away; the others have the durable consumer watch-NAME.
	Live bool `yaml:"live,omitempty" json:"live,omitempty"`
	// MQTT users log in with name and password over MQTT only; all others
	// prove that they have the NKey's seed.
	MQTT bool `yaml:"mqtt,omitempty" json:"mqtt,omitempty"`

	// Large cameras may send images above the broker's payload limit. They can
	// then remove other cameras' large frames while those wait, not forge them.
	Large bool `yaml:"large,omitempty" json:"large,omitempty"`

	Key Key `yaml:"key" json:"-"`
	// Old is the key before the last rotation, good until OldUntil.
	Old      *Key      `yaml:"old,omitempty" json:"-"`
	OldUntil time.Time `yaml:"old_until,omitempty" json:"old_until,omitzero"`

	Created  time.Time `yaml:"created" json:"created"`
	Disabled bool      `yaml:"disabled,omitempty" json:"disabled,omitempty"`
}

// Key is the public half of what proves an identity: one of the two is set.
type Key struct {
	// Public is the NKey's public key ("U" and 55 characters).
	Public string `yaml:"public,omitempty"`
	// Hash is a bcrypt hash of the password.
	Hash string `yaml:"hash,omitempty"`
}

// Validate reports everything that is wrong with u.
func (u User) Validate() error {
	var errs []error
	wrong := func(format string, v ...any) {
		errs = append(errs, fmt.Errorf("user %q: "+format, append([]any{u.Name}, v...)...))
	}
	if err := stream.CheckToken("user", u.Name); err != nil {
		errs = append(errs, err)
	}
	if !slices.Contains(Roles, u.Role) {
		wrong("%q is not a role: use one of %v", u.Role, Roles)
	}
	for what, name := range map[string]string{"detector": u.Detector, "camera": u.Camera} {
		if name != "" {
			if err := stream.CheckToken(what, name); err != nil {
				wrong("%w", err)
			}
		}
	}
	for _, k := range u.Kinds {
		if err := stream.CheckToken("event kind", k); err != nil {
			wrong("%w", err)
		}
	}
	switch {
	case u.Role == Camera && u.Detector == "":
		wrong("a camera needs the detector that its frames go to")
	case u.Role != Camera && u.Camera != "":
		wrong("only a camera has a camera name")
	case u.Role != Camera && u.Role != Subscriber && u.Role != Worker && u.Detector != "":
		wrong("role %s cannot be confined to a detector", u.Role)
	case u.Role != Subscriber && (len(u.Kinds) > 0 || u.Live):
		wrong("only a subscriber names event kinds or is live")
	case u.Large && (u.Role != Camera || u.MQTT):
		wrong("only cameras that speak NATS send large frames")
	case u.MQTT && u.Role != Camera:
		wrong("only cameras may speak MQTT")
	}
	if err := u.Key.validate(u.MQTT); err != nil {
		wrong("%w", err)
	}
	if u.Old != nil {
		if err := u.Old.validate(u.MQTT); err != nil {
			wrong("old key: %w", err)
		}
	}
	return errors.Join(errs...)
}

func (k Key) validate(password bool) error {
	switch {
	case password && k.Public != "", !password && k.Hash != "":
		return errors.New("MQTT users have a password hash, all others a public key")
	case password && !isBcrypt(k.Hash):
		return errors.New("the password hash is not bcrypt's")
	case !password && !nkeys.IsValidPublicUserKey(k.Public):
		return errors.New("the public key is not an NKey of a user")
	}
	return nil
}

// isBcrypt says whether s looks as bcrypt's hashes do ($2a$, cost, 53 characters).
func isBcrypt(s string) bool {
	if len(s) != 60 || s[0] != '$' || s[1] != '2' || s[3] != '$' || s[6] != '$' {
		return false
	}
	return strings.Trim(s[7:], "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// CameraName is the camera whose frames u publishes.
func (u User) CameraName() string {
	if u.Camera != "" {
		return u.Camera
	}
	return u.Name
}

// Durable is the consumer of NM_EVENTS from which subscriber u pulls.
func (u User) Durable() string { return "watch-" + u.Name }

// keys are the keys that are good at now, the newest first.
func (u User) keys(now time.Time) []Key {
	if u.Disabled {
		return nil
	}
	all := []Key{u.Key}
	if u.Old != nil && now.Before(u.OldUntil) {
		all = append(all, *u.Old)
	}
	return all
}

package access

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nearmiss/nearmiss/stream"
)

// The accounts.
const (
	AccountNM          = "NM"
	AccountCameras     = "CAMERAS"
	AccountSubscribers = "SUBSCRIBERS"
	AccountSystem      = "SYS"
)

// subscriberAPI is the prefix under which account SUBSCRIBERS reaches
// JetStream in account NM: "$JS.API." is answered by the own account.
const subscriberAPI = "NM.API."

// SubscriberAPIPrefix is what a subscriber gives to [jetstream.NewWithAPIPrefix].
const SubscriberAPIPrefix = "NM.API"

// Render writes accounts and users as a nats-server configuration: to be
// included by an outside server's, or given to the embedded one. It is JSON,
// which the server reads as it reads its own format, and in which no name can
// be anything but a string. now decides which rotated keys are still good.
//
// internal, unless empty, is the public key of the process that runs the
// broker: it may do anything in account NM.
func Render(n stream.Names, f File, internal string, now time.Time) ([]byte, error) {
	if err := n.Validate(); err != nil {
		return nil, err
	}
	if err := f.Validate(); err != nil {
		return nil, err
	}
	users := map[string][]confUser{AccountNM: {}, AccountCameras: {}, AccountSubscribers: {}, AccountSystem: {}}
	if internal != "" {
		users[AccountNM] = append(users[AccountNM], confUser{NKey: internal, Permissions: permissions(Rights{Publish: []string{">"}, Subscribe: []string{">"}})})
	}
	for _, u := range f.Users {
		rights := u.Rights(n)
		for _, k := range u.keys(now) {
			c := confUser{NKey: k.Public, Permissions: permissions(rights)}
			if u.MQTT {
				c.User, c.Password, c.Types = u.Name, k.Hash, []string{"MQTT"}
			}
			users[u.account()] = append(users[u.account()], c)
			if u.MQTT {
				break // two passwords of one name cannot be distinguished
			}
		}
	}
	s, c := n.EventsStream(), []string{AccountSubscribers}
	cameras := append([]string{n.Frames("*", "*"), n.Shed("*", "*")}, large(n)...)
	next, ask, ack := "CONSUMER.MSG.NEXT."+s+".*", "CONSUMER.INFO."+s+".*", "$JS.ACK."+s+".>"
	events := subjects{n}.prefixed("events.>")
	scores := subjects{n}.prefixed("scores.>")
	incidents := subjects{n}.prefixed("incidents.>")
	var offers, services []any // to cameras, by them
	for _, subject := range cameras {
		offers = append(offers, map[string]any{"service": subject, "accounts": []string{AccountCameras}})
		services = append(services, imported("service", subject, ""))
	}
	conf := map[string]any{
		"system_account": AccountSystem,
		"accounts": map[string]any{
			AccountNM: map[string]any{
				"jetstream": "enabled", "users": users[AccountNM],
				"exports": append(offers,
					map[string]any{"stream": events, "accounts": c},
					map[string]any{"stream": scores, "accounts": c},
					map[string]any{"stream": incidents, "accounts": c},
					map[string]any{"service": api + ask, "accounts": c},
					map[string]any{"service": api + next, "response_type": "stream", "accounts": c},
					map[string]any{"service": ack, "accounts": c},
				),
			},
			AccountCameras: map[string]any{
				"jetstream": "enabled", // MQTT sessions are kept in it
				"users":     users[AccountCameras],
				"imports":   services,
			},
			AccountSubscribers: map[string]any{
				"users": users[AccountSubscribers],
				"imports": []any{
					imported("stream", events, ""), imported("stream", scores, ""), imported("stream", incidents, ""),
					imported("service", api+ask, subscriberAPI+ask),
					imported("service", api+next, subscriberAPI+next),
					imported("service", ack, ""),
				},
			},
			AccountSystem: map[string]any{"users": users[AccountSystem]},
		},
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // the server does not know \u003e
	enc.SetIndent("", "  ")
	if err := enc.Encode(conf); err != nil {
		return nil, fmt.Errorf("render accounts: %w", err)
	}
	return out.Bytes(), nil
}

// account that holds u.
func (u User) account() string {
	switch u.Role {
	case Camera:
		return AccountCameras
	case Subscriber:
		return AccountSubscribers
	case Metrics:
		return AccountSystem
	default:
		return AccountNM
	}
}

// confUser is a user as nats-server's configuration has it.
type confUser struct {
	NKey        string          `json:"nkey,omitempty"`
	User        string          `json:"user,omitempty"`
	Password    string          `json:"password,omitempty"`
	Permissions confPermissions `json:"permissions"`
	Types       []string        `json:"allowed_connection_types,omitempty"`
}

type confPermissions struct {
	Publish   any            `json:"publish"`
	Subscribe any            `json:"subscribe"`
	Responses map[string]any `json:"allow_responses,omitempty"`
}

// permissions renders r. The server takes an empty list for everything, so that
// an empty list is written as a denial of everything.
func permissions(r Rights) confPermissions {
	p := confPermissions{Publish: allowed(r.Publish), Subscribe: allowed(r.Subscribe)}
	if r.Respond {
		p.Responses = map[string]any{"max": 1, "expires": "1m"}
	}
	return p
}

func allowed(list []string) any {
	if len(list) == 0 {
		return map[string]any{"deny": ">"}
	}
	return slices.Compact(slices.Sorted(slices.Values(list)))
}

func imported(what, subject, as string) map[string]any {
	m := map[string]any{what: map[string]any{"account": AccountNM, "subject": subject}}
	if as != "" {
		m["to"] = as
	}
	return m
}

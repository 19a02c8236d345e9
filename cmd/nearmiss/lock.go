package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/renameio/v2"

	"github.com/nearmiss/nearmiss/stream/access"
)

type lockCmd struct {
	Hosts    []string `arg:"" name:"host" help:"Names and addresses by which other machines reach this one; their bundles use the first name, or else the first address."`
	Listen   string   `default:"0.0.0.0" placeholder:"ADDR" help:"Address to listen on."`
	Port     int      `default:"4222" help:"Port of NATS clients."`
	Operator string   `default:"desk" placeholder:"NAME" help:"Name of the identity for the command line."`
	usersFolder
}

func (*lockCmd) Help() string {
	return "For the machine of the broker, before others reach it: an authority and a certificate for the broker, a first identity, " +
		"and a configuration that listens with them. Every other machine then gets a folder of its own by nearmiss users add --bundle.\n\n" +
		examples(
			"nearmiss lock plant.example.org 10.0.0.5",
			"nearmiss up --config nearmiss-data/nearmiss.yaml",
			"nearmiss status --config nearmiss-data/desk/nearmiss.yaml",
		)
}

func (c *lockCmd) Run(ctx context.Context, o *output) error {
	file, err := access.Load(c.path())
	if err != nil {
		return err
	}
	conf := filepath.Join(c.Data, "nearmiss.yaml")
	if _, err := os.Stat(conf); err == nil || len(file.Users) > 0 {
		return fmt.Errorf("%s is locked already: nearmiss users add lets more machines in", c.Data)
	}
	now, tls := time.Now(), filepath.Join(c.Data, "tls")
	ca := access.OpenCA(tls)
	if _, err := os.Stat(ca.CertFile()); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(tls, 0o700); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		if err := ca.Create(ctx, "Nearmiss CA", false, now); err != nil {
			return err
		}
	}
	if err := ca.Issue(ctx, tls, serverCert, true, append(c.Hosts, "localhost", "127.0.0.1"), now); err != nil {
		return err
	}
	bundle := filepath.Join(c.Data, c.Operator)
	add := usersAddCmd{Role: string(access.Operator), Name: c.Operator, bundleFlags: bundleFlags{Bundle: bundle, Address: "tls://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port))}, usersFolder: c.usersFolder}
	if err := add.Run(ctx, o); err != nil {
		return err
	}
	data, err := filepath.Abs(c.Data)
	if err != nil {
		return err
	}
	if err := writeYAML(conf, "What nearmiss lock has set up: nearmiss up --config with this file.", yaml.MapSlice{
		{Key: "data", Value: data},
		{Key: "broker", Value: yaml.MapSlice{
			{Key: "host", Value: c.Listen},
			{Key: "port", Value: c.Port},
			{Key: "tls", Value: yaml.MapSlice{
				{Key: "cert", Value: filepath.Join(data, "tls", serverCert+".crt")}, {Key: "key", Value: filepath.Join(data, "tls", serverCert+".key")},
			}},
		}},
	}); err != nil {
		return err
	}
	return o.print(fmt.Sprintf("start it: nearmiss up --config %s\nlook at it: nearmiss status --config %s\nlet a machine in: nearmiss users add camera NAME --detector DETECTOR --bundle NAME",
		conf, filepath.Join(bundle, bundleConfig)))
}

// serverCert is what nearmiss lock calls the broker's certificate.
const serverCert = "server"

// bundleConfig is the configuration in a bundle.
const bundleConfig = "nearmiss.yaml"

func writeYAML(path, about string, v yaml.MapSlice) error {
	b, err := yaml.Marshal(v)
	if err == nil {
		err = renameio.WriteFile(path, append([]byte("# "+about+"\n"), b...), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// bundleFlags ask for a folder with all that a machine needs.
type bundleFlags struct {
	Bundle  string `type:"path" placeholder:"DIR" help:"Also write a folder for the machine: its key, the authority, and a configuration for --config."`
	Address string `placeholder:"URL" help:"With --bundle: where the machine reaches the broker (default: the host that nearmiss lock was given)."`
}

// fits refuses a bundle for what does not run this program: an MQTT client needs its
// password, which is shown once, and the authority.
func (b bundleFlags) fits(u access.User) error {
	if b.Bundle != "" && u.MQTT {
		return usageError{fmt.Errorf("--bundle is for machines that run nearmiss: give %s its password and ca.crt", u.Name)}
	}
	return nil
}

// bundled says what was done with the secret, or writes the bundle that is asked for.
func (b bundleFlags) bundled(o *output, f usersFolder, u access.User, done string) error {
	if b.Bundle == "" {
		return o.print(done)
	}
	if err := f.bundle(u, b.Bundle, b.Address); err != nil {
		return err
	}
	return o.printf("%s: bring it to the machine of %s, and start its command with --config %s\n", b.Bundle, u.Name, filepath.Join(b.Bundle, bundleConfig))
}

// bundle puts all that a machine needs to reach the broker into a folder: its key,
// the authority, and a configuration that names both and the server.
func (f usersFolder) bundle(u access.User, dir, server string) error {
	if server == "" {
		var host string
		cert, err := access.ReadCert(filepath.Join(f.Data, "tls", serverCert+".crt"))
		switch {
		case err == nil && len(cert.DNSNames) > 0 && cert.DNSNames[0] != "localhost":
			host = cert.DNSNames[0]
		case err == nil && len(cert.IPAddresses) > 0:
			host = cert.IPAddresses[0].String()
		default:
			return usageError{errors.New("say by which address the machine reaches the broker: --address tls://HOST:4222 (nearmiss lock would know)")}
		}
		conf, err := loadConfig(filepath.Join(f.Data, "nearmiss.yaml"), nil)
		if err != nil {
			return err
		}
		server = "tls://" + net.JoinHostPort(host, strconv.Itoa(conf.Broker.Port))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the bundle of %s: %w", u.Name, err)
	}
	client := yaml.MapSlice{{Key: "nkey", Value: u.Name + ".nk"}}
	copies := map[string]string{u.Name + ".nk": f.keyFile(u.Name)}
	if u.Role == access.Subscriber {
		client = append(client, yaml.MapItem{Key: "js_api_prefix", Value: access.SubscriberAPIPrefix})
	}
	authority := access.OpenCA(filepath.Join(f.Data, "tls")).CertFile()
	if _, err := os.Stat(authority); err == nil {
		copies["ca.crt"] = authority
		client = append(client, yaml.MapItem{Key: "tls", Value: yaml.MapSlice{{Key: "ca", Value: "ca.crt"}}})
	}
	for name, from := range copies {
		b, err := os.ReadFile(from)
		if err == nil {
			err = renameio.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("make the bundle of %s: %w", u.Name, err)
		}
	}
	about := fmt.Sprintf("Nearmiss %s %s: bring this folder to the machine, and name this file with --config. Keep it secret.", u.Role, u.Name)
	return writeYAML(filepath.Join(dir, bundleConfig), about, yaml.MapSlice{{Key: "server", Value: server}, {Key: "client", Value: client}})
}

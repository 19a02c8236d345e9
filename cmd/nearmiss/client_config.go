package main

import (
	"os"
	"path/filepath"

	"github.com/alecthomas/kong"

	"github.com/nearmiss/nearmiss/stream/access"
)

// clientConfig says how this machine's commands and services prove to the broker
// who they are. Flags and their environment variables go before it.
type clientConfig struct {
	NKey        string          `yaml:"nkey"`
	Creds       string          `yaml:"creds"`
	JSDomain    string          `yaml:"js_domain"`     // of the streams, where the server is a leaf node that has another
	JSAPIPrefix string          `yaml:"js_api_prefix"` // where JetStream answers a subscriber in an account of its own
	TLS         clientTLSConfig `yaml:"tls"`
}

// clientTLSConfig are a client's files.
type clientTLSConfig struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// beside has relative paths mean files beside the configuration.
func (c clientConfig) beside(path string) clientConfig {
	for _, file := range []*string{&c.NKey, &c.Creds, &c.TLS.CA, &c.TLS.Cert, &c.TLS.Key} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(path), *file)
		}
	}
	return c
}

func (c clientConfig) files() access.TLSFiles {
	return access.TLSFiles{CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key}
}

// flags are the same, as a command has them.
func (c clientConfig) flags() credentialFlags {
	return credentialFlags{
		NKey: c.NKey, Creds: c.Creds, TLSCA: c.TLS.CA, TLSCert: c.TLS.Cert, TLSKey: c.TLS.Key,
		JSDomain: c.JSDomain, JSAPIPrefix: c.JSAPIPrefix,
	}
}

// values are the flags that a configuration stands for, of commands that talk to a
// broker.
func (c config) values() map[string]string {
	return map[string]string{
		"server": c.Server, "prefix": c.Prefix,
		"nkey": c.Client.NKey, "creds": c.Client.Creds, "js-domain": c.Client.JSDomain, "js-api-prefix": c.Client.JSAPIPrefix,
		"tls-ca": c.Client.TLS.CA, "tls-cert": c.Client.TLS.Cert, "tls-key": c.Client.TLS.Key,
	}
}

// configured takes flags of commands that talk to a broker from the file that
// --config names, where neither the command line nor the environment has them.
type configured struct{ files map[string]config } // that were read

// Validate implements kong.Resolver.
func (configured) Validate(*kong.Application) error { return nil }

// Resolve implements kong.Resolver.
func (r configured) Resolve(k *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	if _, known := (config{}).values()[flag.Name]; !known {
		return nil, nil
	}
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	file, client := "", false
	for _, f := range parent.Flags {
		switch f.Name {
		case "server": // other commands have flags of these names that mean something else
			client = true
		case "config":
			file, _ = k.FlagValue(f).(string)
		}
	}
	if !client || file == "" {
		return nil, nil
	}
	c, ok := r.files[file]
	if !ok {
		var err error
		if c, err = (configFlag{Config: file}).load(func(*config) {}); err != nil {
			return nil, err
		}
		r.files[file] = c
	}
	if v := c.values()[flag.Name]; v != "" {
		return v, nil
	}
	return nil, nil
}

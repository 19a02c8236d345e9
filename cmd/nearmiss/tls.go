package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nearmiss/nearmiss/stream/access"
)

type tlsCmd struct {
	CA    tlsCACmd    `cmd:"" name:"ca" help:"Make the authority that signs this installation's certificates."`
	Issue tlsIssueCmd `cmd:"" help:"Make a certificate for a server or a client."`
	Renew tlsRenewCmd `cmd:"" help:"Make certificates anew that end soon."`
	Show  tlsShowCmd  `cmd:"" help:"Show certificates, and when they end."`
}

// tlsFolder is where keys and certificates lie.
type tlsFolder struct {
	Dir string `default:"nearmiss-data/tls" type:"path" placeholder:"DIR" help:"Folder of keys and certificates."`
}

func (f tlsFolder) ca() access.CA { return access.OpenCA(f.Dir) }

type tlsCACmd struct {
	Name    string `default:"Nearmiss CA" help:"What the authority is called."`
	Replace bool   `help:"Make a new authority in place of the one that is there, which stays trusted in ca.crt: give ca.crt to everybody, then renew."`
	tlsFolder
}

func (*tlsCACmd) Help() string {
	return "ca.key stays here. ca.crt goes to every machine that connects: --tls-ca ca.crt.\n\n" +
		examples("nearmiss tls ca", "nearmiss tls ca --replace")
}

func (c *tlsCACmd) Run(ctx context.Context, o *output) error {
	if err := c.ca().Create(ctx, c.Name, c.Replace, time.Now()); err != nil {
		return err
	}
	return o.print(c.ca().CertFile() + " is what others need to trust it")
}

type tlsIssueCmd struct {
	Kind string   `arg:"" enum:"server,client" help:"${enum}"`
	Name string   `arg:"" help:"Name of the machine; the files are called NAME.crt and NAME.key."`
	SAN  []string `name:"san" placeholder:"HOST" help:"Host name or address by which clients reach the server; may be repeated."`
	tlsFolder
}

func (*tlsIssueCmd) Help() string {
	return examples(
		"nearmiss tls issue server broker --san broker.example.org --san 10.0.0.5",
		"nearmiss tls issue client line1",
	)
}

func (c *tlsIssueCmd) Run(ctx context.Context, o *output) error {
	if err := c.ca().Issue(ctx, c.Dir, c.Name, c.Kind == "server", c.SAN, time.Now()); err != nil {
		return err
	}
	path := filepath.Join(c.Dir, c.Name)
	return o.printf("%s.crt and %s.key are good for 397 days\n", path, path)
}

type tlsRenewCmd struct {
	Certs  []string      `arg:"" optional:"" type:"existingfile" placeholder:"FILE.crt" help:"Certificates (default: all in the folder that end soon)."`
	Within time.Duration `default:"720h" help:"What soon means, for certificates that are not named."`
	tlsFolder
}

func (*tlsRenewCmd) Help() string {
	return "Brokers take up the new files at the next connection; nobody is dropped.\n\n" +
		examples("nearmiss tls renew", "nearmiss tls renew nearmiss-data/tls/broker.crt")
}

func (c *tlsRenewCmd) Run(ctx context.Context, o *output) error {
	now := time.Now()
	if len(c.Certs) == 0 {
		if _, err := os.Stat(c.Dir); err != nil {
			return fmt.Errorf("no folder of certificates: %w: name it with --dir", err)
		}
		all, err := certificates(c.Dir)
		if err != nil {
			return err
		}
		for _, s := range all {
			if !s.CA && s.NotAfter.Before(now.Add(c.Within)) {
				c.Certs = append(c.Certs, s.File)
			}
		}
	}
	for _, f := range c.Certs {
		if err := c.ca().Renew(ctx, f, now); err != nil {
			return err
		}
		if err := o.print(f + " is renewed"); err != nil {
			return err
		}
	}
	if len(c.Certs) == 0 {
		return o.printf("no certificate in %s ends within %v\n", c.Dir, c.Within)
	}
	return nil
}

type tlsShowCmd struct {
	JSON bool `name:"json" help:"Print one JSON object a certificate."`
	tlsFolder
}

func (*tlsShowCmd) Help() string { return examples("nearmiss tls show") }

func (c *tlsShowCmd) Run(o *output) error {
	all, err := certificates(c.Dir)
	if err != nil {
		return err
	}
	if len(all) == 0 && !c.JSON {
		return o.printf("%s has no certificates: begin with nearmiss tls ca\n", c.Dir)
	}
	return list(o, c.JSON, all, func(s certificate) string {
		kind := "certificate"
		if s.CA {
			kind = "authority"
		}
		return fmt.Sprintf("%-40s %-11s %s  until %s (%d days)", s.File, kind, s.Subject, s.NotAfter.Format(time.DateOnly), s.Days)
	})
}

// certificate is what tls show prints.
type certificate struct {
	File     string    `json:"file"`
	Subject  string    `json:"subject"`
	CA       bool      `json:"ca"`
	Hosts    []string  `json:"hosts,omitempty"`
	NotAfter time.Time `json:"not_after"`
	Days     int       `json:"days"`
}

func certificates(dir string) ([]certificate, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil {
		return nil, fmt.Errorf("find certificates in %s: %w", dir, err)
	}
	var all []certificate
	for _, f := range files {
		c, err := access.ReadCert(f)
		if err != nil {
			return nil, err
		}
		s := certificate{File: f, Subject: c.Subject.CommonName, CA: c.IsCA, Hosts: c.DNSNames, NotAfter: c.NotAfter, Days: int(time.Until(c.NotAfter).Hours() / 24)}
		for _, ip := range c.IPAddresses {
			s.Hosts = append(s.Hosts, ip.String())
		}
		all = append(all, s)
	}
	return all, nil
}

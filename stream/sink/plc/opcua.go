package plc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"time"

	"github.com/gopcua/opcua"
	"github.com/gopcua/opcua/ua"

	"github.com/nearmiss/nearmiss/stream/sink"
)

// OPCUAKind is the name of this kind of sink.
const OPCUAKind = "opcua"

// OPCUA is the configuration of a sink that writes OPC UA variables. A variable
// that is not named is not written.
type OPCUA struct {
	// URL is opc.tcp://HOST:PORT[/PATH].
	URL string `json:"url"`
	// Policy is the security policy: Basic256Sha256 (default),
	// Aes128_Sha256_RsaOaep, Aes256_Sha256_RsaPss, or None, which neither signs
	// nor encrypts.
	Policy string `json:"policy,omitempty"`
	// CertFile and KeyFile are this client's certificate (DER or PEM), which the
	// server must trust. Every policy but None needs them.
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
	// User signs in with the sink's secret as the password; without one it is
	// anonymous.
	User string `json:"user,omitempty"`

	// Nodes are the variables.
	Nodes Nodes `json:"nodes"`
	Timing
}

// Nodes are names of variables, such as "ns=2;s=Line1.Result".
type Nodes struct {
	Result    string `json:"result,omitempty"`    // Int16: 0 none, 1 good, 2 anomalous, 3 unreadable
	Sequence  string `json:"sequence,omitempty"`  // UInt32, written together with the result, behind all others
	Score     string `json:"score,omitempty"`     // Float: score as a percentage of the threshold
	Part      string `json:"part,omitempty"`      // String: the frame's id
	Coil      string `json:"coil,omitempty"`      // Boolean, as Means says
	Heartbeat string `json:"heartbeat,omitempty"` // UInt32
}

var policies = map[string]string{
	"None":                  ua.SecurityPolicyURINone,
	"Basic256Sha256":        ua.SecurityPolicyURIBasic256Sha256,
	"Aes128_Sha256_RsaOaep": ua.SecurityPolicyURIAes128Sha256RsaOaep,
	"Aes256_Sha256_RsaPss":  ua.SecurityPolicyURIAes256Sha256RsaPss,
}

// OpenOPCUA opens a sink of that kind; secret is the user's password.
func OpenOPCUA(s sink.Sink, secret string) (sink.Sender, error) {
	var c OPCUA
	if err := s.Decode(&c); err != nil {
		return nil, fmt.Errorf("opcua: %w", err)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "opc.tcp" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("opcua: address %q: write it as opc.tcp://10.0.0.5:4840", c.URL)
	}
	c.Policy = cmp.Or(c.Policy, "Basic256Sha256")
	_, known := policies[c.Policy]
	switch {
	case !known:
		return nil, fmt.Errorf("opcua: policy %q: use Basic256Sha256, Aes128_Sha256_RsaOaep, Aes256_Sha256_RsaPss or None", c.Policy)
	case c.Policy == "None" && c.User != "":
		return nil, errors.New("opcua: policy None would send the password in the clear: name no user, or another policy")
	case c.Policy != "None" && (c.CertFile == "" || c.KeyFile == ""):
		return nil, fmt.Errorf("opcua: policy %s needs this client's cert_file and key_file", c.Policy)
	}
	p := &opcuaPanel{cfg: c, password: secret, nodes: map[string]*ua.NodeID{}}
	for _, name := range []string{c.Nodes.Result, c.Nodes.Sequence, c.Nodes.Score, c.Nodes.Part, c.Nodes.Coil, c.Nodes.Heartbeat} {
		if name == "" {
			continue
		}
		if p.nodes[name], err = ua.ParseNodeID(name); err != nil {
			return nil, fmt.Errorf("opcua: node %q: write it as ns=2;s=Name or ns=2;i=7: %w", name, err)
		}
	}
	if len(p.nodes) == 0 {
		return nil, errors.New("opcua: name at least one node: result, sequence, score, part, coil or heartbeat")
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	p.cfg.Timing = c.withDefaults()
	return newSender(p.cfg.Timing, func() panel { again := *p; return &again }), nil
}

type opcuaPanel struct {
	cfg      OPCUA
	password string
	nodes    map[string]*ua.NodeID
	client   *opcua.Client
}

func (p *opcuaPanel) open(ctx context.Context) error {
	wait := time.Duration(p.cfg.TimeOut)
	step, cancel := context.WithTimeout(ctx, 10*time.Second) // keys are agreed on
	defer cancel()
	fail := func(err error) error { return fmt.Errorf("connect with %s: %w", p.cfg.URL, err) }
	opts := []opcua.Option{
		opcua.AutoReconnect(false), // the link does that, and says so
		opcua.RequestTimeout(wait), opcua.DialTimeout(wait), opcua.ApplicationURI("urn:nearmiss:client"), opcua.ApplicationName("nearmiss"),
	}
	mode, user := ua.MessageSecurityModeSignAndEncrypt, ua.UserTokenTypeAnonymous
	if p.cfg.Policy == "None" {
		mode = ua.MessageSecurityModeNone
	} else {
		opts = append(opts, opcua.CertificateFile(p.cfg.CertFile), opcua.PrivateKeyFile(p.cfg.KeyFile))
	}
	if p.cfg.User != "" {
		user = ua.UserTokenTypeUserName
		opts = append(opts, opcua.AuthUsername(p.cfg.User, p.password))
	} else {
		opts = append(opts, opcua.AuthAnonymous())
	}
	all, err := opcua.GetEndpoints(step, p.cfg.URL)
	if err != nil {
		return fail(err)
	}
	at, err := opcua.SelectEndpoint(all, policies[p.cfg.Policy], mode)
	if err != nil || at == nil {
		return fail(fmt.Errorf("it does not offer policy %s", p.cfg.Policy))
	}
	opts = append(opts, opcua.SecurityFromEndpoint(at, user))
	// The configured address, not the one that the server calls itself.
	c, err := opcua.NewClient(p.cfg.URL, opts...)
	if err == nil {
		err = c.Connect(step)
	}
	if err != nil {
		return fail(err)
	}
	p.client = c
	return nil
}

func (p *opcuaPanel) close() {
	if p.client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(p.cfg.TimeOut))
		defer cancel()
		_ = p.client.Close(ctx)
		p.client = nil
	}
}

// value is what a node is to have.
type value struct {
	node string
	v    any
}

// write writes the named nodes in one request, in that order.
func (p *opcuaPanel) write(ctx context.Context, values ...value) error {
	var req ua.WriteRequest
	var names []string
	for _, v := range values {
		if v.node == "" {
			continue
		}
		variant, err := ua.NewVariant(v.v)
		if err != nil {
			return fmt.Errorf("write %s: %w", v.node, err)
		}
		names = append(names, v.node)
		req.NodesToWrite = append(req.NodesToWrite, &ua.WriteValue{
			NodeID: p.nodes[v.node], AttributeID: ua.AttributeIDValue,
			Value: &ua.DataValue{EncodingMask: ua.DataValueValue, Value: variant},
		})
	}
	if len(names) == 0 {
		return nil
	}
	step, cancel := context.WithTimeout(ctx, time.Duration(p.cfg.TimeOut))
	defer cancel()
	resp, err := p.client.Write(step, &req)
	if err != nil {
		return fmt.Errorf("write %v: %w", names, err)
	}
	for i, code := range resp.Results {
		if code != ua.StatusOK {
			return fmt.Errorf("write %s: %w", names[min(i, len(names)-1)], code)
		}
	}
	return nil
}

func (p *opcuaPanel) data(ctx context.Context, v verdict) error {
	percent := float32(min(max(v.ratio, 0)*100, math.MaxFloat32))
	return p.write(ctx, value{p.cfg.Nodes.Score, percent}, value{p.cfg.Nodes.Part, v.part})
}

func (p *opcuaPanel) result(ctx context.Context, r Result, seq uint32) error {
	return p.write(ctx, value{p.cfg.Nodes.Result, int16(r)}, value{p.cfg.Nodes.Sequence, seq})
}

func (p *opcuaPanel) coil(ctx context.Context, on bool) error {
	return p.write(ctx, value{p.cfg.Nodes.Coil, on})
}

func (p *opcuaPanel) beat(ctx context.Context, n uint32) error {
	return p.write(ctx, value{p.cfg.Nodes.Heartbeat, n})
}

func (p *opcuaPanel) probe(ctx context.Context) error {
	for name, id := range p.nodes {
		step, cancel := context.WithTimeout(ctx, time.Duration(p.cfg.TimeOut))
		resp, err := p.client.Read(step, &ua.ReadRequest{NodesToRead: []*ua.ReadValueID{{NodeID: id, AttributeID: ua.AttributeIDValue}}})
		cancel()
		if err == nil && len(resp.Results) == 1 && resp.Results[0].Status != ua.StatusOK {
			err = resp.Results[0].Status
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
	}
	return nil
}

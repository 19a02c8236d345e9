package plc

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/ua"

	"github.com/nearmiss/nearmiss/stream/sink"
)

// variables are those of an OPC UA server, with the order in which they were
// written.
type variables struct {
	*server.MapNamespace
	mu      sync.Mutex
	written []map[string]any // all values after each write
}

func (v *variables) SetAttribute(node *ua.NodeID, attr ua.AttributeID, val *ua.DataValue) ua.StatusCode {
	code := v.MapNamespace.SetAttribute(node, attr, val)
	v.mu.Lock()
	defer v.mu.Unlock()
	now := map[string]any{"written": node.StringID()}
	for _, k := range []string{"result", "sequence", "score", "part", "coil", "heartbeat"} {
		now[k] = v.GetValue(k)
	}
	v.written = append(v.written, now)
	return code
}

// controlled starts an OPC UA server of six variables. It speaks without
// encryption; encrypted sessions need a server of another maker.
func controlled(t *testing.T) (url string, v *variables) {
	t.Helper()
	for range 20 { // the library cannot say which port it has found
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		s := server.New(
			server.EnableSecurity("None", ua.MessageSecurityModeNone), server.EnableAuthMode(ua.UserTokenTypeAnonymous),
			server.EndPoint("127.0.0.1", port),
		)
		v = &variables{MapNamespace: server.NewMapNamespace(s, "line")}
		v.SetID(uint16(s.AddNamespace(v)))
		maps.Copy(v.Data, map[string]any{"result": int16(9), "sequence": uint32(0), "score": float32(0), "part": "", "coil": true, "heartbeat": uint32(0)})
		ctx, cancel := context.WithCancel(context.Background())
		if err := s.Start(ctx); err != nil {
			cancel()
			continue
		}
		t.Cleanup(func() {
			_ = s.Close()
			cancel()
		})
		return fmt.Sprintf("opc.tcp://127.0.0.1:%d", port), v
	}
	t.Fatal("no port is free")
	return "", nil
}

// By OPC UA, too, each part has its verdict, and the sequence is written when
// everything that belongs to it is there.
func TestAnOPCUAControllerGetsEveryVerdict(t *testing.T) {
	url, v := controlled(t)
	l := newLine(t)
	node := func(name string) string { return fmt.Sprintf("ns=%d;s=%s", v.ID(), name) }
	cfg := OPCUA{
		URL: url, Policy: "None",
		Nodes: Nodes{Result: node("result"), Sequence: node("sequence"), Score: node("score"), Part: node("part"), Coil: node("coil"), Heartbeat: node("heartbeat")},
		Timing: Timing{
			MaxAge: sink.Duration(10 * time.Minute), TimeOut: sink.Duration(time.Minute), Pulse: sink.Duration(time.Hour), Heartbeat: sink.Duration(20 * time.Millisecond),
		},
	}
	l.watch(OpenOPCUA, cfg)
	soon(t, "the heartbeat begins", func() bool { n, _ := v.GetValue("heartbeat").(uint32); return n > 0 })
	if v.GetValue("result") != int16(None) || v.GetValue("coil") != false {
		t.Errorf("at the beginning: result %v, coil %v", v.GetValue("result"), v.GetValue("coil"))
	}
	for i := range 40 {
		r := []Result{Good, Anomalous, Unreadable}[i%3]
		part := l.score(i, r)
		var got map[string]any
		soon(t, "the coil is written for "+part, func() bool {
			v.mu.Lock()
			defer v.mu.Unlock()
			n := slices.IndexFunc(v.written, func(m map[string]any) bool { return m["written"] == "coil" && m["part"] == part })
			if n >= 0 {
				got = v.written[n]
			}
			return n >= 0
		})
		score := map[Result]float32{Good: 50, Anomalous: 250, Unreadable: 0}[r]
		if got["result"] != int16(r) || got["coil"] != (r == Good) || got["sequence"] != uint32(i+1) || got["score"] != score {
			t.Fatalf("%s: %v", part, got)
		}
		v.mu.Lock()
		for _, m := range v.written { // the sequence came last
			if m["written"] == "sequence" && m["sequence"] == uint32(i+1) && m["result"] != int16(None) && (m["part"] != part || m["result"] != int16(r)) {
				t.Errorf("%s: when the sequence was written: %v", part, m)
			}
		}
		v.mu.Unlock()
	}
}

func TestConfigurationsOfControllersThatCannotWork(t *testing.T) {
	for cfg, open := range map[string]func(sink.Sink, string) (sink.Sender, error){
		`{}`:                                                                           OpenModbus,
		`{"url":"http://h","coil":1}`:                                                  OpenModbus,
		`{"url":"tcp://u:p@h","coil":1}`:                                               OpenModbus,
		`{"url":"tcp://h"}`:                                                            OpenModbus,
		`{"url":"tcp://h","coil":70000}`:                                               OpenModbus,
		`{"url":"tcp://h","coil":1,"x":1}`:                                             OpenModbus,
		`{"url":"tcp://h","registers":65530}`:                                          OpenModbus,
		`{"url":"tcp://h","coil":1,"means":"maybe"}`:                                   OpenModbus,
		`{"url":"tcp://h","coil":1,"max_age":"1s","time_out":"1s"}`:                    OpenModbus,
		`{"url":"tcp://h","coil":1,"part":"roman"}`:                                    OpenModbus,
		`{"url":"opc.tcp://h","nodes":{"result":"ns=2;s=a"}}`:                          OpenOPCUA, // without a certificate
		`{"url":"opc.tcp://h","policy":"None"}`:                                        OpenOPCUA,
		`{"url":"opc.tcp://h","policy":"Basic128","nodes":{"result":"ns=2;s=a"}}`:      OpenOPCUA,
		`{"url":"opc.tcp://h","policy":"None","nodes":{"result":"nonsense;;"}}`:        OpenOPCUA,
		`{"url":"opc.tcp://h","policy":"None","user":"u","nodes":{"coil":"ns=2;s=a"}}`: OpenOPCUA,
	} {
		if _, err := open(sink.Sink{Name: "s", Config: []byte(cfg)}, ""); err == nil {
			t.Errorf("taken: %s", cfg)
		}
	}
	for cfg, open := range map[string]func(sink.Sink, string) (sink.Sender, error){
		`{"url":"tcp://10.0.0.5","coil":3}`:                                          OpenModbus,
		`{"url":"opc.tcp://h:4840","policy":"None","nodes":{"result":"ns=2;s=L.R"}}`: OpenOPCUA,
	} {
		if _, err := open(sink.Sink{Name: "s", Config: []byte(cfg)}, ""); err != nil {
			t.Errorf("%s: %v", cfg, err)
		}
	}
}

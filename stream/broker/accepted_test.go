package broker_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nearmiss/nearmiss/internal/brokertest"
	"github.com/nearmiss/nearmiss/internal/eventually"
	"github.com/nearmiss/nearmiss/stream"
	"github.com/nearmiss/nearmiss/stream/access"
	"github.com/nearmiss/nearmiss/stream/broker"
)

// TestTheTableOfWhatIsAcceptedOverMQTTIsTrue publishes on the embedded listener, as a
// camera with a password, all that the table of inference/imaging/README.md says of
// MQTT: what is accepted is stored as it was sent, what is refused is not.
func TestTheTableOfWhatIsAcceptedOverMQTTIsTrue(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../inference/imaging/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, row, ok := strings.Cut(string(raw), "\n| over MQTT |")
	cells := strings.Split(strings.Split(row, "\n")[0], "|")
	if !ok || len(cells) != 5 {
		t.Fatalf("there is no row of MQTT in the table: %q", cells)
	}
	items := func(cell string) []string { return strings.Split(strings.TrimSpace(cell), ", ") }
	accepted, refused := items(cells[2]), items(cells[3])

	h := newHall(t)
	key, password, err := access.NewPassword()
	if err != nil {
		t.Fatal(err)
	}
	phones := []string{"phone0", "phone1", "phone2"} // one for each QoS
	h.change(func(f *access.File) error {
		for _, name := range phones {
			if err := f.Add(access.User{Name: name, Role: access.Camera, Detector: "bolts", MQTT: true, Key: key}); err != nil {
				return err
			}
		}
		return nil
	})
	b := h.start(broker.Config{MQTTPort: -1, MaxPayload: 64 << 10})
	js := brokertest.StreamsOn(t, brokertest.Connect(t, b, b.Credentials()...))
	frames, err := js.Stream(t.Context(), "NM_FRAMES")
	if err != nil {
		t.Fatal(err)
	}
	topic := func(detector, name string) string {
		return strings.ReplaceAll((stream.Names{}).Frames(detector, name), ".", "/")
	}
	const room = 200 // for what the server adds
	byDefault, _ := brokertest.Start(t, broker.Config{Port: -1})
	limit := fmt.Sprintf("%d MiB", brokertest.Connect(t, byDefault).MaxPayload()>>20)
	if want := []string{"`" + topic("DETECTOR", "CAMERA") + "`", "MQTT 3.1.1", "QoS 0", "QoS 1", "QoS 2", fmt.Sprintf("%s less %d bytes", limit, room)}; !slices.Equal(accepted, want) {
		t.Errorf("the table says that %q is accepted, it is %q", accepted, want)
	}
	if want := []string{"MQTT 3.1", "MQTT 5", limit}; !slices.Equal(refused, want) {
		t.Errorf("the table says that %q is refused, it is %q", refused, want)
	}

	login := func(protocol string, level byte, name string) (mqttClient, error) {
		t.Helper()
		c, err := net.Dial("tcp", b.MQTTAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		m := mqttClient{c, bufio.NewReader(c)}
		return m, m.login(protocol, level, name, password)
	}
	for name, level := range map[string]byte{"MQIsdp": 3, "MQTT": 5} {
		if _, err := login(name, level, phones[0]); err == nil {
			t.Errorf("%s %d is accepted", name, level)
		}
	}
	image := make([]byte, 64<<10)
	for qos, name := range phones {
		send := func(image []byte) error {
			m, err := login("MQTT", 4, name)
			if err == nil {
				err = m.publish(byte(qos), topic("bolts", name), image)
			}
			return err
		}
		publishesInTime(t, func() error { return send(image[:len(image)-room]) })
		if err := send(image); err == nil {
			t.Errorf("QoS %d: a payload of the limit is accepted", qos)
		}
		eventually.True(t, "it is so", func() bool {
			m, err := frames.GetLastMsgForSubject(t.Context(), "nearmiss.frames.bolts."+name)
			return err == nil && len(m.Data) == len(image)-room
		})
	}
}

package mqtt

import (
	"fmt"
	"hash/crc32"
	"strings"
)

// deviceID is a camera's in Home Assistant. Names with underscores get a check
// sum: "a_b" and "c" are not "a" and "b_c".
func (p place) deviceID() string {
	id := "nearmiss_" + p.detector + "_" + p.camera
	if strings.Contains(p.detector+p.camera, "_") {
		id += fmt.Sprintf("_%08x", crc32.ChecksumIEEE([]byte(p.detector+"/"+p.camera)))
	}
	return id
}

// device is a camera's discovery message (Home Assistant, MQTT device
// discovery, in its abbreviations).
func (s *sender) device(p place) map[string]any {
	id := p.deviceID()
	topic := func(what string) string { return s.topic(p.detector, p.camera, what) }
	parts := map[string]any{
		"alarm": map[string]any{
			"p": "binary_sensor", "name": "Alarm", "unique_id": id + "_alarm", "device_class": "problem",
			"state_topic": topic("state"), "value_template": "{{ value_json.alarm }}", "json_attributes_topic": topic("state"),
		},
		"score": map[string]any{
			"p": "sensor", "name": "Score", "unique_id": id + "_score", "state_class": "measurement", "suggested_display_precision": 2,
			"state_topic": topic("state"), "value_template": "{{ value_json.ratio | default(none) }}", "unit_of_measurement": "× threshold",
		},
		"camera": map[string]any{
			"p": "binary_sensor", "name": "Camera", "unique_id": id + "_camera", "device_class": "connectivity",
			"state_topic": topic("camera"), "payload_on": Live, "payload_off": Silent,
		},
		"alarms": map[string]any{
			"p": "event", "name": "Alarms", "unique_id": id + "_alarms", "event_types": []string{"new", "update", "end"},
			"state_topic": topic("incident"), "value_template": "{{ {'event_type': value_json.data.phase, 'incident': value_json.data.id} | tojson }}",
		},
	}
	if s.cfg.Pictures {
		parts["picture"] = map[string]any{
			"p": "image", "name": "Last alarm", "unique_id": id + "_picture", "image_topic": topic("picture"), "content_type": "image/jpeg",
		}
	}
	return map[string]any{
		"dev":  map[string]any{"ids": []string{id}, "name": p.detector + " " + p.camera, "mf": "Nearmiss", "sw": s.version},
		"o":    map[string]any{"name": "nearmiss", "sw": s.version},
		"cmps": parts,
		// Whoever was stopped is not there either.
		"avty_t": s.topic("availability"), "avty_tpl": "{{ 'online' if value == 'online' else 'offline' }}", "qos": 1,
	}
}

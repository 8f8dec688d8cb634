package vxlan

import (
	"encoding/json"
	"testing"

	"github.com/flanneld/flanneld/kernel/link"
)

func TestDataIsFlannels(t *testing.T) {
	mac := link.MAC{0x46, 0x0a, 0x5c, 0, 0, 0xff}
	if got, want := string(marshalData(1, mac)), `{"VNI":1,"VtepMAC":"46:0a:5c:00:00:ff"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// flannel tells 16 bits of a longer VNI.
	if got, want := string(marshalData(70000, mac)), `{"VNI":4464,"VtepMAC":"46:0a:5c:00:00:ff"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, raw := range []string{
		`{"VNI":1,"VtepMAC":"46:0a:5c:00:00:ff"}`,
		` { "VtepMAC" : "46-0A-5C-00-00-FF", "VNI" : 1, "Else": [] } `,
		`{"vni":1,"vtepmac":"460a.5c00.00ff"}`,
		`{"VtepMAC":"46:0a:5c:00:00:ff"}`, // before flannel told the VNI
	} {
		if got, err := parseData([]byte(raw), 1, link.MAC{}); err != nil || got != mac {
			t.Errorf("%s: %s, %v", raw, got, err)
		}
	}
}

func FuzzBackendData(f *testing.F) {
	for _, s := range []string{
		"", "null", "7", `{}`, `{"VNI":1,"VtepMAC":"46:0a:5c:00:00:ff"}`, `{"VNI":01,"VtepMAC":"46:0a:5c:00:00:ff"}`,
		`{"VNI":65536,"VtepMAC":"46:0A:5C:00:00:FF"}`, `{"VNI":1,"VtepMAC":"01:00:00:00:00:00"}`,
		`{"VNI":1,"VtepMAC":"46:0a:5c:00:00"}`, `{"VNI":1,"VtepMAC":"+6:0a:5c:00:00:ff"}`, `{"VNI":,"VtepMAC":"46:0a:5c:00:00:ff"}`,
	} {
		f.Add([]byte(s))
	}
	own := link.MAC{2, 0, 0, 0, 0, 1}
	f.Fuzz(func(t *testing.T, raw []byte) {
		mac, err := parseData(raw, 1, own)
		if err == nil && (!mac.IsUnicast() || mac == own) {
			t.Errorf("accepted %s", mac)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("error of %d bytes", len(err.Error()))
		}
		if vni, mac, ok := quickData(raw); ok {
			slowVNI, slowMAC, err := slowData(raw)
			if err != nil || vni != slowVNI || mac != slowMAC {
				t.Errorf("quick: %d %s; slow: %d %s %v", vni, mac, slowVNI, slowMAC, err)
			}
			if !json.Valid(raw) {
				t.Error("accepted what is no JSON")
			}
		}
	})
}

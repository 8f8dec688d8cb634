package subnet

import (
	"slices"
	"testing"
)

const testPrefix = "/coreos.com/network"

func TestKeysAreFlannels(t *testing.T) {
	for name, subnets := range map[string]string{
		"10.1.19.0-24":                     "10.1.19.0/24",
		"10.1.19.0-24&fd00:1:19::-64":      "10.1.19.0/24 fd00:1:19::/64",
		"0.0.0.0-0&fd00:1:19::-64":         "fd00:1:19::/64",
		"10.1.19.4-30&fd00:1:19::1:0-112":  "10.1.19.4/30 fd00:1:19::1:0/112",
		"0.0.0.0-0&2001:db8:0:1:8000::-65": "2001:db8:0:1:8000::/65",
	} {
		key := testPrefix + "/subnets/" + name
		if got := Key(testPrefix, prefixes(subnets)); got != key {
			t.Errorf("Key(%s) = %s, want %s", subnets, got, key)
		}
		got, err := ParseKey(testPrefix, key)
		if err != nil || !slices.Equal(got, prefixes(subnets)) {
			t.Errorf("ParseKey(%s) = %v, %v, want %s", key, got, err, subnets)
		}
	}
	if got := ConfigKey("/coreos.com/network/"); got != "/coreos.com/network/config" {
		t.Errorf("prefix with a slash at the end: %s", got)
	}
}

func TestOtherKeysAreRefused(t *testing.T) {
	for _, name := range []string{
		"", "10", "10.12.13.0", "10.12.13-24", "10.12.13.300-24", "10.12.13.0-24hi", "&2001::-56", "0.0.0.0-0",
		"10.12.13.0-24&:12:13:-56", "10.12.13.0-24&20011::-56", "10.12.13.0-24&2001-56", "10.12.13.0-24&2001::",
		"10.12.13.0-24&2001::-56hi", "10.12.13.0-24&", "10.12.13.1-24", "10.12.13.0-024", "10.12.13.0-+24", "10.12.13.0-33",
		"010.12.13.0-24", "fd00::-64", "10.12.13.0-24&FD00::-64", "10.12.13.0-24&fd00:0::-64", "10.12.13.0-24&fd00::1-64",
		"10.12.13.0-24&fe80::%eth0-64", "10.12.13.0-24&::ffff:10.0.0.0-120", "10.12.13.0-24&10.12.14.0-24", "10.12.13.0-24/", "10.12.13.0--1",
	} {
		if got, err := ParseKey(testPrefix, testPrefix+"/subnets/"+name); err == nil {
			t.Errorf("ParseKey(%q) = %v", name, got)
		}
	}
	if got, err := ParseKey(testPrefix, "/elsewhere/subnets/10.1.19.0-24"); err == nil {
		t.Errorf("key of another prefix: %v", got)
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add("10.1.19.0-24")
	f.Add("10.1.19.0-24&fd00:1:19::-64")
	f.Add("0.0.0.0-0&fd00:1:19::-64")
	f.Fuzz(func(t *testing.T, name string) {
		key := SubnetsPrefix(testPrefix) + name
		subnets, err := ParseKey(testPrefix, key)
		if err != nil {
			return
		}
		if again := Key(testPrefix, subnets); again != key {
			t.Fatalf("%q means %v, which is spelt %q", key, subnets, again)
		}
	})
}

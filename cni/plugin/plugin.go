// Package plugin is what the CNI executables flanneld-bridge and
// flanneld-ipam do.
//
// It follows the CNI specification, versions 0.3.0 to 1.1.0. A call works in
// the network namespace it is run in and needs no daemon. Sections named in
// comments are those of the specification, version 1.1.0.
package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/flanneld/flanneld/cni/hostside"
)

// Versions of the specification that are spoken, oldest first.
var Versions = []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Our own error codes, from 100 on as section 2 wants it.
const (
	codeFull     = 100 // no free address
	codeTaken    = 101 // a requested address is taken or in no range
	codeExists   = 102 // the interface or attachment is there already
	codeBridge   = 103 // the bridge is not as configured
	codeKernel   = 104 // the kernel refused a change
	codeStorage  = 105 // attachment records cannot be read or written
	codeDelegate = 106 // the IPAM plugin did not do its part
	codeCheck    = 107 // CHECK found something not as it should be
	codeInUse    = 108 // somebody else on this host gives out the same addresses
)

// IO is the outside of a call.
type IO struct {
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Filter         func() (hostside.PacketFilter, error) // nil: hostside.OpenFilter
}

// commands is what a plugin does. ADD prints its result.
type commands struct {
	name                             string
	add, del, check, status, collect func(*call) error
}

// call is one invocation: environment and configuration, validated.
type call struct {
	command, containerID, netns, ifName, path string
	args                                      map[string]string
	env                                       func(string) string
	stdin                                     []byte
	conf                                      config
	stdout, stderr                            io.Writer
	openFilter                                func() (hostside.PacketFilter, error)
}

// Bridge runs flanneld-bridge and returns its exit status.
func Bridge(x IO) int { return run(bridgeCommands(), x) }

// IPAM runs flanneld-ipam and returns its exit status.
func IPAM(x IO) int { return run(ipamCommands(), x) }

func run(p commands, x IO) int {
	if x.Getenv("CNI_COMMAND") == "" {
		fmt.Fprintf(x.Stderr, "%s is a CNI plugin: container engines run it, with CNI_COMMAND set. It speaks CNI %s.\n", p.name, strings.Join(Versions, ", "))
		return 0
	}
	version, err := dispatch(p, x)
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*types.Error](err)
	if !ok {
		e = fail(codeKernel, err)
	}
	_ = printJSON(x.Stdout, struct {
		CNIVersion string `json:"cniVersion"`
		*types.Error
	}{version, e})
	return 1
}

// dispatch returns the version to answer in.
func dispatch(p commands, x IO) (version string, err error) {
	version = Versions[len(Versions)-1]
	command := x.Getenv("CNI_COMMAND")
	if command == "VERSION" {
		return version, printJSON(x.Stdout, struct {
			CNIVersion        string   `json:"cniVersion"`
			SupportedVersions []string `json:"supportedVersions"`
		}{version, Versions})
	}
	since, known := map[string]string{"ADD": "0.3.0", "DEL": "0.3.0", "CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}[command]
	if !known {
		return version, failf(types.ErrInvalidEnvironmentVariables, "CNI_COMMAND=%q: must be ADD, DEL, CHECK, STATUS, GC or VERSION", command)
	}
	c := &call{command: command, env: x.Getenv, stdout: x.Stdout, stderr: x.Stderr, openFilter: x.Filter}
	if c.openFilter == nil {
		c.openFilter = hostside.OpenFilter
	}
	if err := c.environment(); err != nil {
		return version, err
	}
	if c.stdin, err = io.ReadAll(io.LimitReader(x.Stdin, maxConfig+1)); err != nil {
		return version, failf(types.ErrIOFailure, "read configuration from standard input: %v", err)
	}
	if c.conf, err = parseConfig(c.stdin); err != nil {
		return version, err
	}
	version = c.conf.CNIVersion
	if version < since { // versions compare as text: 0.3.0 … 1.1.0
		return version, failf(types.ErrIncompatibleCNIVersion, "%s needs cniVersion %s or later, the configuration says %s", command, since, version)
	}
	return version, p.run(c)
}

func (p commands) run(c *call) error {
	switch c.command {
	case "ADD":
		return p.add(c)
	case "DEL":
		return p.del(c)
	case "CHECK":
		return p.check(c)
	case "STATUS":
		return p.status(c)
	default:
		return p.collect(c)
	}
}

// print writes an ADD's result in the version of the configuration.
func (c *call) print(r types.Result) error {
	v, err := r.GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return failf(types.ErrIncompatibleCNIVersion, "result in version %s: %v", c.conf.CNIVersion, err)
	}
	if err := printJSON(c.stdout, v); err != nil {
		return failf(types.ErrIOFailure, "write result: %v", err)
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// environment reads and validates what the engine says by variables (section
// 2, "Parameters").
func (c *call) environment() error {
	c.containerID, c.netns, c.ifName = c.env("CNI_CONTAINERID"), c.env("CNI_NETNS"), c.env("CNI_IFNAME")
	c.path = c.env("CNI_PATH")
	c.args = parseArgs(c.env("CNI_ARGS"))
	if c.command == "STATUS" || c.command == "GC" {
		return nil
	}
	if err := validContainerID(c.containerID); err != nil {
		return err
	}
	if err := validIfName(c.ifName); err != nil {
		return err
	}
	if c.netns == "" && c.command != "DEL" {
		return failf(types.ErrInvalidEnvironmentVariables, "CNI_NETNS is missing: %s needs the path of the container's network namespace", c.command)
	}
	return nil
}

func validContainerID(s string) error {
	if s == "" {
		return failf(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID is missing")
	}
	if !isID(s) {
		return failf(types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID=%q: must begin with a letter or digit and hold only letters, digits, and . _ -", clip(s))
	}
	return nil
}

// isID tells whether s is a container id or network name by section 1: it
// may become part of a path.
func isID(s string) bool {
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != ""
}

func validIfName(s string) error {
	var bad string
	switch {
	case s == "":
		return failf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME is missing")
	case len(s) > 15:
		bad = "must be at most 15 bytes long"
	case s == "." || s == "..":
		bad = "is not allowed"
	case strings.ContainsAny(s, "/:%\x7f") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' }):
		bad = "must not hold white space, / : or %"
	case s == "lo" || s == "all" || s == "default":
		bad = "means something else to the kernel"
	default:
		return nil
	}
	return failf(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME=%q: %s", clip(s), bad)
}

// parseArgs reads CNI_ARGS: KEY=VALUE;KEY=VALUE. Keys are not case
// sensitive, and unknown ones are ignored.
func parseArgs(s string) map[string]string {
	args := map[string]string{}
	for pair := range strings.SplitSeq(s, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			args[strings.ToUpper(strings.TrimSpace(k))] = strings.TrimSpace(v)
		}
	}
	return args
}

// failf makes an error with a code of section 2, "Error".
func failf(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// fail gives err a code, unless it has one.
func fail(code uint, err error) *types.Error {
	if e, ok := errors.AsType[*types.Error](err); ok {
		return e
	}
	return types.NewError(code, err.Error(), "")
}

// clip bounds what is quoted in an error.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

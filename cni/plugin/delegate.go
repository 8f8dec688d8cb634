package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// parseResult reads a result of a version of the specification and brings it
// to the present one.
func parseResult(version string, b []byte) (*types100.Result, error) {
	var v struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, failf(types.ErrDecodingFailure, "result: %v", err)
	}
	if v.CNIVersion != "" {
		version = v.CNIVersion
	}
	r, err := create.Create(version, b)
	if err != nil {
		return nil, failf(types.ErrDecodingFailure, "result: %v", err)
	}
	out, err := types100.NewResultFromResult(r)
	if err != nil {
		return nil, failf(types.ErrDecodingFailure, "result: %v", err)
	}
	return out, nil
}

// delegate runs another IPAM plugin with our own input (section 4) and returns what it printed.
func (c *call) delegate(command string) ([]byte, error) {
	path, err := findPlugin(c.conf.IPAM.Type, c.path)
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	cmd := exec.Cmd{
		Path: path, Args: []string{path}, Stdin: bytes.NewReader(c.stdin), Stdout: &out, Stderr: &errs,
		Env: append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+c.containerID, "CNI_NETNS="+c.netns,
			"CNI_IFNAME="+c.ifName, "CNI_PATH="+c.path, "CNI_ARGS="+c.env("CNI_ARGS")),
	}
	err = cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	var told types.Error
	if json.Unmarshal(out.Bytes(), &told) == nil && told.Msg != "" {
		told.Msg = "IPAM plugin " + c.conf.IPAM.Type + ": " + told.Msg
		if told.Code == 0 || told.Code == types.ErrInternal {
			told.Code = codeDelegate
		}
		return nil, &told
	}
	return nil, failf(codeDelegate, "IPAM plugin %s %s: %v: %s", path, command, err, clip(strings.TrimSpace(errs.String())))
}

// delegateAdd asks another IPAM plugin for addresses.
func (c *call) delegateAdd() (*types100.Result, error) {
	b, err := c.delegate("ADD")
	if err != nil {
		// It may have taken an address before it went wrong.
		_, _ = c.delegate("DEL")
		return nil, err
	}
	r, err := parseResult(c.conf.CNIVersion, b)
	if err == nil && len(r.IPs) == 0 {
		err = failf(codeDelegate, "IPAM plugin %s returned no address", c.conf.IPAM.Type)
	}
	if err != nil {
		_, _ = c.delegate("DEL")
		return nil, err
	}
	return r, nil
}

// release makes another IPAM plugin, if there is one, take back the addresses
// of the container that the call is about.
func (c *call) release() error {
	if !c.conf.delegates() {
		return nil
	}
	_, err := c.delegate("DEL")
	return err
}

func findPlugin(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if st, err := os.Stat(full); err == nil && st.Mode().IsRegular() {
			return full, nil
		}
	}
	return "", fail(types.ErrInvalidNetworkConfig, errors.New("IPAM plugin "+name+" is not in CNI_PATH "+path+": install it there, or use "+ownIPAM))
}

// Package plan is what the host tells the VM to do and how the VM answers, in
// JSON.
package plan

import "time"

// Where the guest finds things.
const (
	File    = "/plan.json" // in the initramfs
	Modules = "/modules"   // in the initramfs: those that must be loaded before the root is there
	Root    = "root"       // mount tag of the machine's own root
	Port    = "answers"    // name of the virtio port that the guest writes Answers to, one a line
)

// Plan is the whole life of a VM.
type Plan struct {
	Early   []string // file names in Modules, in the order of loading
	Tree    string   // folder with the kernel's modules, on the machine's root
	Keep    string   // folder of the machine that is there even inside one that the guest has its own of
	Without []string // modules that the kernel shall not find
	Load    []string // modules to load that nothing asks for by itself
	Env     []string // of every step
	Steps   []Step
}

// Step is a program that the guest runs, one after the other.
type Step struct {
	Dir     string // where it starts
	Argv    []string
	Timeout time.Duration // after which it is killed
}

// Answer is one of: the VM is up (Kernel), a step said something (Output), a
// step ended (Ended), all is done (Done), something is wrong (Trouble).
type Answer struct {
	Kernel  string        `json:",omitempty"` // its release
	Step    int           // what Output and Ended are about
	Output  []byte        `json:",omitempty"`
	Ended   bool          `json:",omitempty"`
	Code    int           `json:",omitempty"` // exit code; -1: killed
	Took    time.Duration `json:",omitempty"`
	Trouble string        `json:",omitempty"`
	Done    bool          `json:",omitempty"`
}

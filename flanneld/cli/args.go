package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// newFlags returns the flag set of a subcommand with help that shows
// examples.
func newFlags(name, synopsis, text string, examples ...string) *flag.FlagSet {
	fs := flag.NewFlagSet("flanneld "+name, flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "usage: flanneld %s %s\n\n%s\n\nExamples:\n", name, synopsis, text)
		for _, e := range examples {
			fmt.Fprintf(fs.Output(), "  %s\n", e)
		}
		fmt.Fprintln(fs.Output())
		fs.PrintDefaults()
	}
	return fs
}

// scan reads flags and at most n operands (negative: any number) in any order:
// package flag stops at the first operand. rest is what follows the operands,
// or a "--", which ends the flags.
func scan(fs *flag.FlagSet, args []string, n int) (operands, rest []string, err error) {
	fs.SetOutput(io.Discard)
	var after []string
	if dashes := slices.Index(args, "--"); dashes >= 0 {
		args, after = args[:dashes], args[dashes+1:]
	}
	for len(args) > 0 {
		if strings.HasPrefix(args[0], "-") && args[0] != "-" {
			if err := fs.Parse(args); err != nil {
				return nil, nil, err
			}
			args = fs.Args()
			continue
		}
		if len(operands) == n {
			break
		}
		operands, args = append(operands, args[0]), args[1:]
	}
	return operands, slices.Concat(args, after), nil
}

// parse reads the flags of a subcommand that takes no other arguments. done
// says that the command ends here with the code.
func parse(fs *flag.FlagSet, args []string, stdout, stderr io.Writer) (code int, done bool) {
	_, code, done = parseArgs(fs, args, 0, 0, stdout, stderr)
	return code, done
}

// parseArgs reads flags and least to most operands (most negative: any number)
// in any order.
func parseArgs(fs *flag.FlagSet, args []string, least, most int, stdout, stderr io.Writer) (operands []string, code int, done bool) {
	operands, rest, err := scan(fs, args, most)
	if most < 0 { // after "--" too
		operands, rest = append(operands, rest...), nil
	}
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("unexpected argument %q", rest[0])
	}
	code, done = checkArgs(fs, err, len(operands), least, stdout, stderr)
	return operands, code, done
}

// checkArgs reports what is wrong with arguments, or shows help if that was
// asked for.
func checkArgs(fs *flag.FlagSet, err error, given, least int, stdout, stderr io.Writer) (code int, done bool) {
	switch {
	case errors.Is(err, flag.ErrHelp):
		fs.SetOutput(stdout)
		fs.Usage()
		return exitOK, true
	case err != nil:
		return usageErr(stderr, fs, err), true
	case given < least:
		return usageErr(stderr, fs, fmt.Errorf("%s needed after the command's name, %d given", count(least, "argument"), given)), true
	}
	return 0, false
}

func usageErr(stderr io.Writer, fs *flag.FlagSet, err error) int {
	fmt.Fprintf(stderr, "%s: %v (see %s --help)\n", fs.Name(), err, fs.Name())
	return exitUsage
}

// group runs one of several commands below a subcommand; text lists them.
func group(ctx context.Context, name, text string, commands map[string]command, args []string, stdout, stderr io.Writer) int {
	first := ""
	if len(args) > 0 {
		first = args[0]
	}
	if c, ok := commands[first]; ok {
		return c(ctx, args[1:], stdout, stderr)
	}
	switch first {
	case "help", "-h", "-help", "--help":
		fmt.Fprint(stdout, text)
		return exitOK
	case "":
		fmt.Fprint(stderr, text)
	default:
		fmt.Fprintf(stderr, "flanneld %s: there is no command %q, only %s; flanneld %s help explains them\n",
			name, first, strings.Join(slices.Sorted(maps.Keys(commands)), ", "), name)
	}
	return exitUsage
}

// output is the flag -o, checked.
type output string

func (o *output) String() string { return string(*o) }

// Set takes text or json.
func (o *output) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("use text or json")
	}
	*o = output(s)
	return nil
}

// list is a command that takes no operands and prints what ask returns, as a
// table or, wrapped, as JSON.
func list[T any](ctx context.Context, fs *flag.FlagSet, args []string, stdout, stderr io.Writer,
	ask func(context.Context) ([]T, error), table func(io.Writer, []T), wrapped func([]T) any,
) int {
	format := outputFlag(fs)
	if code, done := parse(fs, args, stdout, stderr); done {
		return code
	}
	all, err := ask(ctx)
	if err != nil {
		return refused(stderr, err)
	}
	if *format == "json" {
		printJSON(stdout, wrapped(all))
		return exitOK
	}
	table(stdout, all)
	return exitOK
}

func outputFlag(fs *flag.FlagSet) *output {
	o := output("text")
	fs.Var(&o, "o", "output `FORMAT`: text or json")
	return &o
}

// addLabels reads k=v,k=v into a map.
func addLabels(m *map[string]string, text string) error {
	if *m == nil {
		*m = map[string]string{}
	}
	for part := range strings.SplitSeq(text, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || k == "" {
			return fmt.Errorf("%q: give LABEL=VALUE, such as app=sample", part)
		}
		if was, ok := (*m)[k]; ok && was != v {
			return fmt.Errorf("label %s is given twice, as %q and as %q", k, was, v)
		}
		(*m)[k] = v
	}
	return nil
}

package arch

import (
	"bufio"
	"go/ast"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// A logged key: where it is first used.
type keys map[string]token.Position

var (
	snakeCase  = regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	loggerName = regexp.MustCompile(`(?i)^(slog|.*log|.*logger)$`)
	docRow     = regexp.MustCompile("^\\| `([^`]+)` \\|")
)

// logCalls are slog's functions and methods, and how many arguments stand
// before the keys; the last of those is the message.
var logCalls = map[string]int{
	"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0,
	"DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2, "Log": 3, "LogAttrs": 3,
}

// attrCalls are slog's constructors of attributes.
var attrCalls = []string{"String", "Int", "Int64", "Uint64", "Float64", "Bool", "Time", "Duration", "Any", "Group"}

func TestLoggedKeysAreDocumented(t *testing.T) {
	m := whole(t)
	used := keys{}
	eachCodeFile(t, func(_ *pkg, f file) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			before, isLog := logCalls[sel.Sel.Name]
			if !isLog || !loggerName.MatchString(lastName(sel.X)) {
				if slices.Contains(attrCalls, sel.Sel.Name) && isIdent(sel.X, "slog") && len(call.Args) > 0 {
					used.add(t, m, call.Args[0])
				}
				return true
			}
			if call.Ellipsis.IsValid() && sel.Sel.Name != "LogAttrs" || len(call.Args) < before {
				t.Errorf("%s: log with keys that can be read here, not with a slice of them", m.fset.Position(call.Pos()))
				return true
			}
			if before > 0 {
				if _, ok := literal(call.Args[before-1]); !ok {
					t.Errorf("%s: the message of a log entry is a constant; what varies goes into keys", m.fset.Position(call.Pos()))
				}
			}
			if sel.Sel.Name != "LogAttrs" { // whose attributes are noted where they are made
				used.addArgs(t, m, call.Args[before:])
			}
			return true
		})
	})
	described := documentedKeys(t, filepath.Join(m.root, "docs/logging.md"))
	for _, key := range slices.Sorted(maps.Keys(used)) {
		if !described[key] {
			t.Errorf("%s: the key %q is not in docs/logging.md", used[key], key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(described)) {
		if _, ok := used[key]; !ok {
			t.Errorf("docs/logging.md describes the key %q, which is never logged", key)
		}
	}
}

// addArgs notes the keys of alternating keys and values; an attribute among
// them stands for both and is noted where it is made.
func (k keys) addArgs(t *testing.T, m *tree, args []ast.Expr) {
	t.Helper()
	for len(args) > 0 {
		if call, ok := args[0].(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && isIdent(sel.X, "slog") {
				args = args[1:]
				continue
			}
		}
		k.add(t, m, args[0])
		args = args[min(2, len(args)):]
	}
}

func (k keys) add(t *testing.T, m *tree, e ast.Expr) {
	t.Helper()
	pos := m.fset.Position(e.Pos())
	key, ok := literal(e)
	switch {
	case !ok:
		t.Errorf("%s: a log key must be a string literal", pos)
	case !snakeCase.MatchString(key):
		t.Errorf("%s: log key %q is not snake_case", pos, key)
	default:
		if _, seen := k[key]; !seen {
			k[key] = pos
		}
	}
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(lit.Value)
	return text, err == nil
}

// lastName is the last word of the expression before the dot: log of d.log.
func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.CallExpr: // slog.Default().Info, log.With(…).Info
		if sel, ok := e.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "With" {
			return lastName(sel.X)
		}
		return "log"
	}
	return ""
}

// documentedKeys reads the first column of the table.
func documentedKeys(t *testing.T, path string) map[string]bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	described := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if row := docRow.FindStringSubmatch(lines.Text()); row != nil {
			described[row[1]] = true
		}
	}
	return described
}

package arch

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

func TestEveryPackageHasAComment(t *testing.T) {
	for _, p := range whole(t).pkgs {
		documented := slices.ContainsFunc(p.files, func(f file) bool { return f.ast.Doc != nil })
		if !documented {
			t.Errorf("%s: no file says what the package is, in a comment above its package clause", p.name)
		}
	}
}

// Lines of a file: about 400 is the aim, more than these fails.
const (
	mostLines     = 500
	mostTestLines = 700
)

func TestFilesAreShort(t *testing.T) {
	for _, p := range whole(t).pkgs {
		for _, f := range p.files {
			limit := mostLines
			if f.test || p.support() {
				limit = mostTestLines
			}
			switch {
			case f.lines > limit:
				t.Errorf("%s has %d lines, more than %d: split it by subject", f.path, f.lines, limit)
			case f.lines > 400:
				t.Logf("%s has %d lines", f.path, f.lines)
			}
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	eachCodeFile(t, func(_ *pkg, f file) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function: do it in main, or list it in a function", f.path)
			}
		}
	})
}

func TestNobodySleeps(t *testing.T) {
	m := whole(t)
	eachCodeFile(t, func(_ *pkg, f file) {
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" && isIdent(sel.X, "time") {
				t.Errorf("%s: time.Sleep: wait for the context as well", m.fset.Position(sel.Pos()))
			}
			return true
		})
	})
}

// variables that are neither errors nor constants in spirit, and why.
var variables = map[string]string{
	"store/etcd/embedded.smallSegments": "the library has a variable only, which is set once a process",
	"store/etcd.quietGRPC":              "the library has one logger a process",
	"store/etcd.start":                  "a moment to count nanoseconds from",
	"flanneld/cli.buildVersion":         "set by the linker",
}

func TestPackageVariablesAreErrorsOrConstantsInSpirit(t *testing.T) {
	m := whole(t)
	for _, p := range m.pkgs {
		if p.support() {
			continue
		}
		changed := assigned(p)
		for _, f := range p.files {
			if f.test {
				continue
			}
			for name, value := range packageVars(f.ast) {
				if variables[p.name+"."+name.Name] != "" {
					continue
				}
				pos := m.fset.Position(name.Pos())
				switch {
				case changed[name.Name]:
					t.Errorf("%s: package variable %s is written to: give it an owner", pos, name.Name)
				case !constantInSpirit(value):
					t.Errorf("%s: package variable %s is neither an error nor a constant in spirit", pos, name.Name)
				}
			}
		}
	}
}

// packageVars yields the variables of a file with their initial values; nil
// where there is none.
func packageVars(f *ast.File) func(yield func(*ast.Ident, ast.Expr) bool) {
	return func(yield func(*ast.Ident, ast.Expr) bool) {
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			embedded := g.Doc != nil && strings.Contains(g.Doc.Text()+docOf(g), "go:embed")
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					if name.Name == "_" || embedded {
						continue
					}
					var value ast.Expr
					if i < len(v.Values) {
						value = v.Values[i]
					}
					if !yield(name, value) {
						return
					}
				}
			}
		}
	}
}

// docOf returns a declaration's comment with its directives, which Text drops.
func docOf(g *ast.GenDecl) string {
	var text strings.Builder
	for _, c := range g.Doc.List {
		text.WriteString(c.Text + "\n")
	}
	return text.String()
}

// constantInSpirit: a literal, or the result of a constructor that cannot
// depend on anything but the program's text.
func constantInSpirit(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CompositeLit, *ast.BasicLit, *ast.BinaryExpr:
		return true
	case *ast.SelectorExpr: // binary.NativeEndian
		return isIdent(e.X, "binary")
	case *ast.CallExpr:
		switch fn := e.Fun.(type) {
		case *ast.SelectorExpr:
			return fn.Sel.Name == "New" && isIdent(fn.X, "errors") ||
				fn.Sel.Name == "Errorf" && isIdent(fn.X, "fmt") ||
				strings.HasPrefix(fn.Sel.Name, "Must") ||
				isIdent(fn.X, "netip") ||
				isIdent(fn.X, "strings") && fn.Sel.Name == "NewReplacer"
		case *ast.ArrayType: // []byte("…")
			return true
		}
	}
	return false
}

// assigned returns the names that a package's code assigns to, or into, with
// "=". A local variable of the same name counts too: call one of them
// something else.
func assigned(p *pkg) map[string]bool {
	names := map[string]bool{}
	note := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.IndexExpr:
				e = x.X
			case *ast.SelectorExpr:
				e = x.X
			case *ast.Ident:
				names[x.Name] = true
				return
			default:
				return
			}
		}
	}
	for _, f := range p.files {
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				if n.Tok != token.DEFINE {
					for _, left := range n.Lhs {
						note(left)
					}
				}
			case *ast.IncDecStmt:
				note(n.X)
			}
			return true
		})
	}
	return names
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// eachCodeFile calls f for every file that is not a test's.
func eachCodeFile(t *testing.T, do func(p *pkg, f file)) {
	t.Helper()
	for _, p := range whole(t).pkgs {
		if p.support() {
			continue
		}
		for _, f := range p.files {
			if !f.test {
				do(p, f)
			}
		}
	}
}

// mostFuncLines of a function outside of tests: about 60 is the aim.
const mostFuncLines = 80

func TestFunctionsAreShort(t *testing.T) {
	m := whole(t)
	eachCodeFile(t, func(_ *pkg, f file) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			from := m.fset.Position(fn.Pos())
			lines := m.fset.Position(fn.End()).Line - from.Line
			switch {
			case lines > mostFuncLines:
				t.Errorf("%s: %s has %d lines, more than %d", from, fn.Name.Name, lines, mostFuncLines)
			case lines > 60:
				t.Logf("%s: %s has %d lines", from, fn.Name.Name, lines)
			}
		}
	})
}

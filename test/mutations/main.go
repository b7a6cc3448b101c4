// Mutations shows that the tests of faults can fail. It copies the last commit to a temporary
// folder, applies the mutations of mutations.yaml one after the other, and runs the test that each
// of them names. A mutation removes the handling of one fault, so its test must fail:
//
//	hack/mutations                  all of them
//	hack/mutations fence gate       these two
//	hack/mutations -quick           the mutations that need only Go and a few seconds
//	hack/mutations -check           apply and vet each one, run no test
//
// A mutation names the declaration that it changes, not lines, so most refactorings do not affect
// it. The test of this package reports each mutation that no longer applies.
//
// The exit code is 1 unless every test fails as it should.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tags are the build tags of the tests and of the programs that they build, separated by commas.
const tags = "real,failpoints"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.BoolVar(&o.quick, "quick", false, "run only the mutations that are marked quick")
	flag.BoolVar(&o.check, "check", false, "check that each mutation applies and compiles; run no test")
	flag.Parse()
	o.names = flag.Args()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "mutations:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to stop
	}
}

type options struct {
	quick, check bool
	names        []string // empty: all
}

// run must be called in the root of the repository.
func run(ctx context.Context, o options) error {
	all, err := load("test/mutations/mutations.yaml")
	if err != nil {
		return err
	}
	chosen, err := choose(all, o)
	if err != nil {
		return err
	}
	tree, err := copyTree(ctx)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree) //nolint:errcheck // a folder in the system's folder for temporary files
	if o.check {
		return check(ctx, tree, chosen)
	}
	begin := time.Now()
	count := map[verdict]int{}
	for _, m := range chosen {
		start := time.Now()
		v, detail, err := try(ctx, tree, m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		count[v]++
		fmt.Printf("%-9s %s: %s (%.1f s)\n", v, m.Name, m.Why, time.Since(start).Seconds())
		if detail != "" {
			fmt.Println("          " + strings.ReplaceAll(detail, "\n", "\n          "))
		}
	}
	fmt.Printf("%d mutations: %d seen, %d not seen, %d broken in %.0f s\n",
		len(chosen), count[seen], count[notSeen], count[broken], time.Since(begin).Seconds())
	if count[seen] < len(chosen) {
		return errors.New("the tests do not see every mutation")
	}
	return nil
}

func choose(all []mutation, o options) ([]mutation, error) {
	var chosen []mutation
	for _, m := range all {
		isNamed := len(o.names) == 0 || slices.Contains(o.names, m.Name)
		if isNamed && (m.Quick || !o.quick) {
			chosen = append(chosen, m)
		}
	}
	for _, name := range o.names {
		if !slices.ContainsFunc(all, func(m mutation) bool { return m.Name == name }) {
			return nil, fmt.Errorf("there is no mutation %q in test/mutations/mutations.yaml", name)
		}
	}
	return chosen, nil
}

// copyTree copies the last commit to a temporary folder, with links to the tools that are installed
// into the repository.
func copyTree(ctx context.Context) (string, error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	tree, err := os.MkdirTemp("", "slipway-mutations-")
	if err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, "git", "clone", "-q", root, tree).CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("git clone: %w: %s", err, out), os.RemoveAll(tree))
	}
	for _, tool := range []string{".venv", ".venvs", ".tools"} {
		if _, err := os.Stat(tool); err != nil {
			continue // the tests that need it skip, and try reports that
		}
		if err := os.Symlink(filepath.Join(root, tool), filepath.Join(tree, tool)); err != nil {
			return "", errors.Join(err, os.RemoveAll(tree))
		}
	}
	return tree, nil
}

type verdict string

const (
	seen    verdict = "seen"
	notSeen verdict = "NOT SEEN"
	broken  verdict = "BROKEN" // the mutation does not apply or compile, or its test did not run
)

// try applies m to tree, runs its test and restores the tree. detail explains a verdict other than
// seen.
func try(ctx context.Context, tree string, m mutation) (v verdict, detail string, err error) {
	mutated := map[string]string{}
	if err := m.apply(tree, mutated); err != nil {
		return broken, err.Error(), nil
	}
	restore, err := overwrite(tree, mutated)
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return "", "", err
	}
	// A test that builds a program fails if that does not compile. This must not look like a
	// mutation that is seen.
	if out, err := compile(ctx, tree, "build", mutated); err != nil {
		return broken, out, ctx.Err()
	}
	// With -v the output names the tests that were skipped.
	test := strings.Replace(m.Test, "go test ", "go test -v ", 1)
	b, failed := command(ctx, tree, "bash", "-c", test).CombinedOutput()
	out := string(b)
	didNotRun := strings.Contains(out, "no tests to run") || strings.Contains(out, "--- SKIP")
	switch {
	case ctx.Err() != nil:
		return "", "", ctx.Err()
	case failed != nil && hasFailed(out):
		return seen, "", nil
	case failed != nil || didNotRun:
		return broken, test + ": " + last(out, 40), nil
	}
	return notSeen, test + " passes with the mutation", nil
}

// check vets many mutations at once, because that takes a quarter of the time. If this fails, it
// vets them one after the other to find which one is broken.
func check(ctx context.Context, tree string, all []mutation) error {
	begin := time.Now()
	var problems []error
	for rest := all; len(rest) > 0; {
		together := map[string]string{}
		var some, later []mutation
		for _, m := range rest {
			if err := m.apply(tree, map[string]string{}); err != nil {
				problems = append(problems, err)
			} else if m.apply(tree, together) != nil { // an earlier one changed the same text
				later = append(later, m)
			} else {
				some = append(some, m)
			}
		}
		if _, err := vet(ctx, tree, together); err != nil {
			for _, m := range some {
				alone := map[string]string{}
				if err := m.apply(tree, alone); err != nil {
					return err
				}
				if out, err := vet(ctx, tree, alone); err != nil {
					problems = append(problems, fmt.Errorf("mutation %s: %w: %s", m.Name, err, out))
				}
			}
		}
		rest = later
	}
	for _, p := range problems {
		fmt.Printf("%-9s %v\n", broken, p)
	}
	fmt.Printf("%d mutations: %d apply, %d broken in %.0f s\n", len(all), len(all)-len(problems), len(problems),
		time.Since(begin).Seconds())
	if len(problems) > 0 {
		return errors.New("not every mutation applies and compiles")
	}
	return nil
}

// vet vets the packages of files with those files, and restores the tree.
func vet(ctx context.Context, tree string, files map[string]string) (out string, err error) {
	restore, err := overwrite(tree, files)
	defer func() { err = errors.Join(err, restore()) }()
	if err != nil {
		return "", err
	}
	return compile(ctx, tree, "vet", files)
}

// compile runs "go build" or "go vet" for the packages of the Go files.
func compile(ctx context.Context, tree, verb string, files map[string]string) (out string, err error) {
	args := []string{verb}
	for file := range files {
		if filepath.Ext(file) == ".go" {
			args = append(args, "./"+filepath.Dir(file))
		}
	}
	if len(args) == 1 {
		return "", nil
	}
	b, err := command(ctx, tree, "go", args...).CombinedOutput()
	return fmt.Sprintf("go %s: %s", strings.Join(args, " "), b), err
}

// overwrite writes the files below tree. restore writes back what they held.
func overwrite(tree string, files map[string]string) (restore func() error, err error) {
	originals := map[string][]byte{}
	restore = func() error {
		var errs []error
		for path, text := range originals {
			errs = append(errs, os.WriteFile(path, text, 0o644))
		}
		return errors.Join(errs...)
	}
	for file, text := range files {
		path := filepath.Join(tree, file)
		original, err := os.ReadFile(path)
		if err != nil {
			return restore, err
		}
		originals[path] = original
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return restore, err
		}
	}
	return restore, nil
}

// hasFailed reports whether go test printed that a test failed. It prints something else if it
// could not run the test.
func hasFailed(out string) bool {
	return strings.Contains(out, "--- FAIL") || strings.Contains(out, "panic: test timed out")
}

// command returns a command in dir. It is interrupted when ctx ends, so that hack/with-postgres can
// stop its server.
func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	if tags != "" {
		c.Env = append(os.Environ(), strings.TrimSpace("GOFLAGS="+os.Getenv("GOFLAGS")+" -tags="+tags))
	}
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 30 * time.Second
	return c
}

// last returns the last n lines of text.
func last(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

package cli

import (
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipway-run/slipway/config"
	"github.com/slipway-run/slipway/launcher"
	"github.com/slipway-run/slipway/launcher/launchertest"
	"github.com/slipway-run/slipway/launcher/plugin"
)

// conformance holds the flags of slipway launchers test.
type conformance struct {
	*program
	image, settings, only, report string
	timeout                       time.Duration
	many                          int
	plain, verbose, quick         bool
}

// errContract makes the exit code 1 if a test fails.
var errContract = errors.New("the launcher breaks the contract")

func (p *program) launchersTestCommand() *cobra.Command {
	c := conformance{program: p}
	cmd := &cobra.Command{
		Use: "test NAME | -- COMMAND [ARG...]", Short: "Test whether a launcher keeps the launcher contract",
		Args: someArgs,
		Long: `Runs the conformance kit, one test for each sentence of the launcher contract, against a launcher of
slipway.yaml or against a program that serves one (see docs/launchers/plugin.md). The kit starts real
workers on the target, which are small shell scripts under a separate instance name, and removes them
again.

Optional sentences that the launcher does not promise are shown as not promised. The exit code is 1
if the launcher breaks a sentence that it promises.

--quick is for a first look, and for targets whose workers cost money: it tests a dozen sentences,
each with one or two workers.`,
		Example: "  slipway launchers test batch\n  slipway launchers test aci --quick --report junit=kit.xml\n  " +
			"slipway launchers test docker --image busybox\n  slipway launchers test --config settings.yaml -- " +
			"./slipway-batch",
		RunE: func(cmd *cobra.Command, args []string) error {
			named := cmd.ArgsLenAtDash() < 0
			if named && len(args) > 1 {
				return fmt.Errorf(
					"only one launcher can be tested at a time; to test a program: slipway launchers test -- %s",
					strings.Join(args, " "))
			}
			file, isJUnit := strings.CutPrefix(c.report, "junit=")
			if c.report != "" && (!isJUnit || file == "") {
				return fmt.Errorf("--report %s: the only format is junit=FILE", c.report)
			}
			c.report = file
			if c.many < 1 {
				return fmt.Errorf("--many %d: at least one worker is needed", c.many)
			}
			dir, err := os.MkdirTemp("", "slipway-launcher-") // the program's own folder
			if err != nil {
				return err
			}
			target, err := c.target(cmd, args, named, dir)
			if err == nil {
				err = c.run(target)
			}
			return errors.Join(err, os.RemoveAll(dir))
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.image, "image", "", "image of the workers, which must contain sh; for targets that need an image")
	f.DurationVar(&c.timeout, "timeout", time.Minute, "how long a worker may take to start and end")
	least(f, "timeout", "1s")
	f.StringVar(&c.only, "only", "", "test only the sentences that contain this text")
	f.IntVar(&c.many, "many", 100, "how many workers the test of many workers starts at once")
	least(f, "many", "1")
	f.BoolVar(&c.quick, "quick", false, "test only the most important sentences, with few workers")
	f.StringVar(&c.report, "report", "", "junit=FILE: write the results into FILE as JUnit XML")
	f.StringVar(&c.settings, "config", "", "YAML or JSON file with the settings of the program's launcher")
	f.BoolVar(&c.plain, "no-mtls", false, "for programs that do not support go-plugin's certificates")
	f.BoolVar(&c.verbose, "verbose", false, "show what the launcher logs")
	return cmd
}

// target returns the launcher of slipway.yaml that args name or, if named is false, the program
// whose command args are.
func (c *conformance) target(cmd *cobra.Command, args []string, named bool, dir string) (launchertest.Target, error) {
	log := slog.New(slog.DiscardHandler)
	if c.verbose {
		var err error
		if log, _, err = c.log(); err != nil {
			return launchertest.Target{}, err
		}
	}
	t := launchertest.Target{Image: c.image, Timeout: c.timeout, Only: c.only, Many: c.many, Quick: c.quick}
	if named {
		in, err := c.instance()
		if err != nil {
			return t, err
		}
		l, ok := in.Launchers[args[0]]
		if !ok {
			return t, fmt.Errorf("%w; to test a program: slipway launchers test -- %s", noLauncher(in, args[0]),
				args[0])
		}
		t.Kind = l.Kind
		t.Open = func() (launcher.Launcher, error) { return l.Kind.Open(cmd.Context(), l.Config, log) }
		return t, nil
	}
	v := config.Values{Path: "config", Env: c.env}
	if c.settings != "" {
		text, err := os.ReadFile(c.settings)
		if err != nil {
			return t, fmt.Errorf("--config: %w", err)
		}
		v.File, v.Path = c.settings, ""
		if v.Node, err = config.Parse(c.settings, text); err != nil {
			return t, err
		}
	}
	t.Open = func() (launcher.Launcher, error) {
		return plugin.Open(cmd.Context(), plugin.Options{Command: args, Env: os.Environ(), Plain: c.plain,
			Timeout: c.timeout, Dir: dir}, v, log)
	}
	return t, nil
}

func (c *conformance) run(target launchertest.Target) error {
	// An error that prevents opening the launcher is reported once, not for each sentence.
	l, err := target.Open()
	if err != nil {
		return err
	}
	if err := launcher.Close(l); err != nil {
		return err
	}
	results, count, began := []launchertest.Result{}, map[launchertest.Outcome]int{}, time.Now()
	launchertest.Check(target, func(r launchertest.Result) {
		results = append(results, r)
		count[r.Outcome]++
		if !c.json && err == nil && r.Outcome != launchertest.NotRun {
			_, err = fmt.Fprintln(c.out, resultLine(r))
		}
	})
	if len(results) == 0 {
		return fmt.Errorf("--only: no sentence of the contract contains %q", c.only)
	}
	if c.report != "" {
		if err := writeJUnit(c.report, results); err != nil {
			return err
		}
	}
	if c.json {
		err = c.printJSON(map[string]any{
			"results": results, "passed": count[launchertest.Passed], "failed": count[launchertest.Failed],
			"not_promised": count[launchertest.NotPromised],
			"not_run":      count[launchertest.NotRun],
		})
	} else if err == nil {
		left := ""
		if n := count[launchertest.NotRun]; n > 0 {
			left = fmt.Sprintf(", %d not run (%s)", n, results[len(results)-1].Text)
		}
		_, err = fmt.Fprintf(c.out, "%d passed, %d failed, %d not promised%s in %.1f s\n", count[launchertest.Passed],
			count[launchertest.Failed],
			count[launchertest.NotPromised], left, time.Since(began).Seconds())
	}
	if count[launchertest.Failed] > 0 {
		err = errors.Join(err, errContract)
	}
	return err
}

func resultLine(r launchertest.Result) string {
	switch r.Outcome {
	case launchertest.Passed:
		return fmt.Sprintf("pass          %s (%.2f s)", r.Sentence, r.Took.Seconds())
	case launchertest.NotPromised:
		return fmt.Sprintf("not promised  %s: %s", r.Sentence, r.Text)
	default:
		return fmt.Sprintf("FAIL          %s (%.2f s)\n              %s", r.Sentence, r.Took.Seconds(),
			strings.ReplaceAll(r.Text, "\n", "\n              "))
	}
}

// The parts of JUnit's XML that CI systems read.
type (
	junitSuite struct {
		XMLName  xml.Name    `xml:"testsuite"`
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Seconds  float64     `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string     `xml:"classname,attr"`
		Name    string     `xml:"name,attr"`
		Seconds float64    `xml:"time,attr"`
		Failure *junitText `xml:"failure"`
		Skipped *junitText `xml:"skipped"`
	}
	junitText struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// writeJUnit writes results into a file. Sentences that are not promised or were not run are
// reported as skipped.
func writeJUnit(file string, results []launchertest.Result) error {
	suite := junitSuite{Name: "slipway launchers test", Tests: len(results)}
	for _, r := range results {
		c := junitCase{Class: "launcher", Name: r.Sentence, Seconds: r.Took.Seconds()}
		first, _, _ := strings.Cut(r.Text, "\n")
		switch r.Outcome {
		case launchertest.Passed:
		case launchertest.Failed:
			c.Failure = &junitText{Message: first, Text: r.Text}
			suite.Failures++
		default:
			c.Skipped = &junitText{Message: string(r.Outcome) + ": " + first}
			suite.Skipped++
		}
		suite.Seconds += c.Seconds
		suite.Cases = append(suite.Cases, c)
	}
	text, err := xml.MarshalIndent(suite, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, slices.Concat([]byte(xml.Header), text, []byte("\n")), 0o644)
}

package cli

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagForms describes the values of flags, by their type.
var flagForms = map[string]string{
	"bool":           "neither true nor false",
	"duration":       "not a duration (for example: 90s, 5m or 2h)",
	"int":            "not an integer (for example: 5)",
	"stringToString": "not KEY=VALUE",
}

// flagError turns an error about a flag of a command into plain English. The result names the flag
// and the help of the command.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		form := flagForms[invalid.GetFlag().Value.Type()]
		if errors.Is(err, strconv.ErrRange) {
			form = "out of range"
		}
		if form != "" {
			err = fmt.Errorf("--%s: %q is %s", invalid.GetFlag().Name, invalid.GetValue(), form)
		}
	}
	return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
}

// leastOf is the annotation of a flag with its least value.
const leastOf = "slipway least value"

// least has a command refuse values of a flag, an integer or a duration, that are less than n.
func least(flags *pflag.FlagSet, name, n string) {
	if err := flags.SetAnnotation(name, leastOf, []string{n}); err != nil {
		panic(err) // there is no such flag
	}
}

// checkFlags refuses values of flags that are too small.
func checkFlags(cmd *cobra.Command, _ []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		for _, n := range f.Annotations[leastOf] {
			if number(f.Value.String()) < number(n) {
				err = usageError{fmt.Errorf("--%s: %s is less than %s; see %s --help", f.Name, f.Value, n,
					cmd.CommandPath())}
			}
		}
	})
	return err
}

// number reads an integer, or a duration in nanoseconds, that pflag has printed.
func number(text string) int64 {
	if d, err := time.ParseDuration(text); err == nil {
		return int64(d)
	}
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, but got %q; see %[1]s --help", cmd.CommandPath(), args[0])}
	}
	return nil
}

// oneArg requires exactly one argument.
func oneArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("%s needs exactly one argument, but got %d: %s", cmd.CommandPath(), len(args),
			cmd.UseLine())}
	}
	return nil
}

// upToOneArg allows one argument.
func upToOneArg(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError{fmt.Errorf("%s takes one argument at most, but got %d: %s", cmd.CommandPath(), len(args),
			cmd.UseLine())}
	}
	return nil
}

// someArgs requires at least one argument.
func someArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageError{fmt.Errorf("%s needs an argument: %s", cmd.CommandPath(), cmd.UseLine())}
	}
	return nil
}

package cli

import (
	"errors"
	"fmt"
	"strconv"

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
	return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
}

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, but got %q; see %[1]s --help", cmd.CommandPath(), args[0])
	}
	return nil
}

// oneArg requires exactly one argument.
func oneArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s needs exactly one argument, but got %d: %s", cmd.CommandPath(), len(args), cmd.UseLine())
	}
	return nil
}

// upToOneArg allows one argument.
func upToOneArg(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s takes one argument at most, but got %d: %s", cmd.CommandPath(), len(args), cmd.UseLine())
	}
	return nil
}

// someArgs requires at least one argument.
func someArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s needs an argument: %s", cmd.CommandPath(), cmd.UseLine())
	}
	return nil
}

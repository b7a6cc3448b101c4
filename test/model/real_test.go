//go:build real

package model_test

import (
	"testing"

	"github.com/slipway-run/slipway/test/model"
	"github.com/slipway-run/slipway/test/testenv"
)

// Most of the states are those of users who cancel in two writes, and of dead workers whose runs are resumed.
func TestEveryStateOfCancels(t *testing.T) {
	testenv.Faults(t)
	explore(t, map[string]world{
		"canceled and resumed":                                          {model.Rules{Unique: true, Gate: true, Calm: true, Cancels: true, Resumes: true}, ""},
		"canceled and resumed, no gate":                                 {model.Rules{Unique: true, Calm: true, Cancels: true, Resumes: true}, ""},
		"canceled and resumed, names that can be doubled":               {model.Rules{Gate: true, Calm: true, Cancels: true, Resumes: true}, ""},
		"nothing is done of a run that is canceled between two workers": {model.Rules{Unique: true, Gate: true, Calm: true, Cancels: true, Blind: true}, ""},
	})
}

//go:build real

package model_test

import (
	"testing"

	"github.com/slipway-run/slipway/test/model"
	"github.com/slipway-run/slipway/test/testenv"
)

// The rules of TestEveryState also hold if users cancel in two writes and runs of dead workers are
// resumed. Most states of the model are in these worlds.
func TestEveryStateOfCancels(t *testing.T) {
	testenv.Faults(t)
	explore(t, map[string]world{
		"canceled and resumed": {model.Rules{Unique: true, Gate: true,
			Calm: true, Cancels: true, Resumes: true}, ""},
		"canceled and resumed, no gate": {model.Rules{Unique: true, Calm: true,
			Cancels: true, Resumes: true}, ""},
		"canceled and resumed, names that can be doubled": {model.Rules{Gate: true, Calm: true,
			Cancels: true, Resumes: true}, ""},
		"nothing is done of a run that is canceled between two workers": {model.Rules{Unique: true, Gate: true,
			Calm: true, Cancels: true, Blind: true}, ""},
	})
}

// Package router says which launchers a run may go to. It is pure.
package router

import "github.com/slipway-run/slipway/dagster"

// Router holds the routes of one instance. For now there is one: the default launcher.
type Router struct{ Default string }

// Route gives the names of the launchers for a run, the first choice first; never none.
func (r Router) Route(dagster.Run) []string { return []string{r.Default} }

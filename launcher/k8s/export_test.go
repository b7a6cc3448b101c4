package k8s

import (
	"log/slog"

	"k8s.io/client-go/rest"

	"github.com/slipway-run/slipway/config"
)

// OpenAt opens a launcher for an API server at a test's address.
func OpenAt(v config.Values, access *rest.Config) (*Launcher, error) {
	c, err := decode(v)
	if err != nil {
		return nil, err
	}
	if c.Kubeconfig != "" && c.InCluster { // the settings that lead to the server are read all the same
		if _, err := c.access(v); err != nil {
			return nil, err
		}
	}
	return open(v, access, slog.New(slog.DiscardHandler))
}

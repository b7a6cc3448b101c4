package instance

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-run/slipway/config"
)

// postgresSection is storage.postgres of dagster.yaml (dagster_postgres.utils.pg_config).
type postgresSection struct {
	URL        string        `config:"postgres_url"`
	Auth       config.Values `config:"auth_provider"`
	DB         *postgresDB   `config:"postgres_db"`
	Autocreate bool          `config:"should_autocreate_tables" default:"true"`
}

type postgresDB struct {
	User     string        `config:"username" required:"true"`
	Password string        `config:"password" default:""`
	Host     string        `config:"hostname" required:"true"`
	Name     string        `config:"db_name" required:"true"`
	Port     int           `config:"port" default:"5432"`
	Params   config.Values `config:"params"`
	Scheme   string        `config:"scheme" default:"postgresql"`
}

// url returns the address as Dagster builds it (dagster_postgres.utils.get_conn_string).
func (db *postgresDB) url() string {
	user := quote(db.User, "/")
	if db.Password != "" {
		user += ":" + quote(db.Password, "/")
	}
	u := fmt.Sprintf("%s://%s@%s:%d/%s", db.Scheme, user, db.Host, db.Port, db.Name)
	params, _ := config.Tree(db.Params.Node).(map[string]any)
	sep := "?"
	for _, name := range slices.Sorted(maps.Keys(params)) {
		u += sep + quote(name, "") + "=" + quote(fmt.Sprint(params[name]), "")
		sep = "&"
	}
	return u
}

// quote is Python's urllib.parse.quote: it escapes every byte except letters, digits, some marks
// and the bytes in safe.
func quote(s, safe string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
			strings.IndexByte("_.-~"+safe, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func (in *Instance) postgres(n *yaml.Node, env config.Lookup) error {
	var s postgresSection
	if err := in.dagsterYAML("storage.postgres", n, env).Decode(&s); err != nil {
		return err
	}
	if s.Auth.Node != nil {
		provider := "this provider"
		if keys := config.Keys(s.Auth.Node); len(keys) > 0 {
			provider = keys[0].Value
		}
		in.auth = problem(in.file, s.Auth.Node, "storage.postgres.auth_provider",
			"Slipway cannot log in with %s yet; set a password, or set storage.direct_url in slipway.yaml to an "+
				"address with one", provider)
	}
	if (s.URL == "") == (s.DB == nil) {
		return problem(in.file, n, "storage.postgres", "set exactly one of postgres_url and postgres_db")
	}
	if s.DB != nil {
		s.URL = s.DB.url()
	}
	in.Storage.BaseDir, in.Storage.URL = "", config.Secret(s.URL)
	return nil
}

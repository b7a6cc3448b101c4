package instance

import (
	"fmt"
	"net/url"
	"regexp"

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
	User     string            `config:"username" required:"true"`
	Password string            `config:"password" default:""`
	Host     string            `config:"hostname" required:"true"`
	Name     string            `config:"db_name" required:"true"`
	Port     int               `config:"port" default:"5432"`
	Params   map[string]string `config:"params"`
	Scheme   string            `config:"scheme" default:"postgresql"`
}

func (db *postgresDB) url() string {
	u := url.URL{Scheme: db.Scheme, Host: fmt.Sprintf("%s:%d", db.Host, db.Port), Path: "/" + db.Name, User: url.User(db.User)}
	if db.Password != "" {
		u.User = url.UserPassword(db.User, db.Password)
	}
	q := url.Values{}
	for k, v := range db.Params {
		q.Set(k, v)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// sqlalchemyScheme is a Postgres address as SQLAlchemy takes it, which may name a driver: postgresql+psycopg2://.
var sqlalchemyScheme = regexp.MustCompile(`^postgres(ql)?(\+\w+)?://`)

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
		in.auth = problem(in.file, s.Auth.Node, "storage.postgres.auth_provider", "Slipway cannot log in by %s yet; give a password, or set storage.direct_url in slipway.yaml to an address with one", provider)
	}
	if (s.URL == "") == (s.DB == nil) {
		return problem(in.file, n, "storage.postgres", "exactly one of postgres_url and postgres_db is expected")
	}
	if s.DB != nil {
		s.URL = s.DB.url()
	}
	s.URL = sqlalchemyScheme.ReplaceAllString(s.URL, "postgresql://")
	in.Storage.BaseDir, in.Storage.URL = "", config.Secret(s.URL)
	return nil
}

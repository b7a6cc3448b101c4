package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// sqlalchemyURL is an address as SQLAlchemy takes it: the scheme may name a driver, and a password
// may hold any character but @ (SQLAlchemy 2.0: sqlalchemy.engine.url._parse_url).
var sqlalchemyURL = regexp.MustCompile(`^postgres(?:ql)?(?:\+\w+)?://(?:([^:/]*)(?::([^@]*))?@)?` +
	`(?:(?:\[([^/?]+)\]|([^/:?]+))?(?::([^/?]*))?)?(?:/([^?]*))?(?:\?((?s:.*)))?`)

// errUnreadable takes the place of errors that would show the password.
var errUnreadable = errors.New("postgres: cannot parse the storage's address: it must be a URL such as " +
	"postgresql://user:password@host:5432/database")

// parseAddress reads the address of a database: one that Dagster opens, by SQLAlchemy, psycopg2 and
// libpq, or any other that libpq takes. Its errors do not show the password.
func parseAddress(address string) (*pgxpool.Config, error) {
	p, ok := parameters(address)
	if !ok {
		c, err := pgxpool.ParseConfig(address)
		if err != nil {
			return nil, errUnreadable
		}
		return c, nil
	}
	adapt, err := p.libpq()
	if err != nil {
		return nil, err
	}
	c, err := pgxpool.ParseConfig(p.dsn())
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil { // says what is wrong, without the address
			err = cause
		} else {
			err = errors.New("a parameter after the ? has a value that is not allowed")
		}
		return nil, fmt.Errorf("postgres: the storage's address cannot be used: %w", err)
	}
	adapt(&c.ConnConfig.Config)
	return c, nil
}

// params are connection parameters by libpq's names.
type params map[string]string

// parameters are those of an address as SQLAlchemy and psycopg2 give them to libpq; false if
// SQLAlchemy does not take the address.
func parameters(address string) (params, bool) {
	m := sqlalchemyURL.FindStringSubmatch(address)
	if m == nil || strings.Trim(m[5], "0123456789") != "" {
		return nil, false
	}
	p := params{"user": unquote(m[1]), "password": unquote(m[2]), "host": m[3] + m[4], "port": m[5], "dbname": m[6]}
	if strings.Contains(p["host"], "%2F") { // a socket's folder, as libpq's own URLs have it
		p["host"] = unquote(p["host"])
	}
	maps.DeleteFunc(p, func(_, v string) bool { return v == "" })
	query := map[string][]string{}
	for pair := range strings.SplitSeq(m[7], "&") {
		name, value, _ := strings.Cut(strings.ReplaceAll(pair, "+", " "), "=")
		if value != "" { // Python leaves out others
			query[unquote(name)] = append(query[unquote(name)], unquote(value))
		}
	}
	for name, values := range query {
		p[name] = values[len(values)-1]
	}
	// Several hosts: ?host=a:1&host=b:2, or ?host=a,b&port=1,2.
	if hosts := query["host"]; len(hosts) > 1 || len(hosts) == 1 && hostAndPort.MatchString(hosts[0]) {
		ports := make([]string, len(hosts))
		for i, h := range hosts {
			hosts[i], ports[i], _ = strings.Cut(h, ":")
		}
		p["host"] = strings.Join(hosts, ",")
		if strings.Join(ports, "") != "" {
			p["port"] = strings.Join(ports, ",")
		}
	}
	if ports := query["port"]; len(ports) > 1 {
		p["port"] = strings.Join(ports, ",")
	}
	return p, true
}

var hostAndPort = regexp.MustCompile(`^[a-zA-Z0-9\-.]*:\d*$`)

var escaped = regexp.MustCompile(`(?:%[0-9a-fA-F]{2})+`)

// unquote is Python's urllib.parse.unquote: a % that begins no escape is left as it is.
func unquote(s string) string {
	return escaped.ReplaceAllStringFunc(s, func(e string) string {
		text, err := url.PathUnescape(e)
		if err != nil { // escaped allows none
			return e
		}
		return text
	})
}

// dsn is p in libpq's form of keywords and values.
func (p params) dsn() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(p)) {
		fmt.Fprintf(&b, "%s='%s' ", name, strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(p[name]))
	}
	return b.String()
}

// libpq takes out of p what libpq has and pgx has not, which pgx would send to the server as a
// setting of the session, and returns what has to be done to pgx's configuration in its place. It
// refuses what would make a connection less safe if it were left out.
func (p params) libpq() (adapt func(*pgconn.Config), err error) {
	take := func(name string) string {
		v := p[name]
		delete(p, name)
		return v
	}
	take("tcp_user_timeout")   // Slipway itself gives up connections without an answer
	take("load_balance_hosts") // hosts are tried in their order
	take("client_encoding")    // is always UTF-8
	for _, useless := range []string{"sslcompression", "sslkeylogfile", "gsslib", "gssdelegation"} {
		take(useless)
	}
	for _, name := range []string{"sslcrl", "sslcrldir", "requirepeer", "scram_client_key", "scram_server_key"} {
		if p[name] != "" {
			return nil,
				fmt.Errorf("postgres: the storage's address has the parameter %s, which Slipway cannot follow: "+
					"set storage.direct_url in slipway.yaml to an address without it", name)
		}
	}
	if take("gssencmode") == "require" {
		return nil,
			errors.New("postgres: the storage's address has gssencmode=require, and Slipway cannot encrypt with " +
				"GSSAPI: set storage.direct_url in slipway.yaml to an address with sslmode=require instead")
	}
	if take("requiressl") == "1" && p["sslmode"] == "" {
		p["sslmode"] = "require"
	}
	if name := take("fallback_application_name"); name != "" && p["application_name"] == "" &&
		os.Getenv("PGAPPNAME") == "" {
		p["application_name"] = name
	}
	lookup := p.hostaddr(take("hostaddr"))
	dialer, err := dialer(take("keepalives"), take("keepalives_idle"), take("keepalives_interval"),
		take("keepalives_count"))
	if err != nil {
		return nil, err
	}
	oldest, newest := take("ssl_min_protocol_version"), take("ssl_max_protocol_version")
	return func(c *pgconn.Config) {
		c.RuntimeParams["client_encoding"] = "UTF8"
		if lookup != nil {
			c.LookupFunc = lookup
		}
		if dialer != nil {
			c.DialFunc = dialer.DialContext
		}
		configs := []*tls.Config{c.TLSConfig}
		for _, f := range c.Fallbacks {
			configs = append(configs, f.TLSConfig)
		}
		for _, t := range configs {
			if t != nil {
				t.MinVersion, t.MaxVersion = tlsVersion(oldest), tlsVersion(newest)
			}
		}
	}, nil
}

// hostaddr has hosts found at the addresses of a parameter hostaddr, while their names are still
// what certificates are checked against. nil leaves it to the resolver.
func (p params) hostaddr(list string) pgconn.LookupFunc {
	if list == "" {
		return nil
	}
	if p["host"] == "" || strings.HasPrefix(p["host"], "/") {
		p["host"] = list
		return nil
	}
	at := map[string][]string{}
	addresses := strings.Split(list, ",")
	for i, host := range strings.Split(p["host"], ",") {
		if i < len(addresses) && addresses[i] != "" {
			at[host] = append(at[host], addresses[i])
		}
	}
	return func(ctx context.Context, host string) ([]string, error) {
		if found := at[host]; len(found) > 0 {
			return found, nil
		}
		return net.DefaultResolver.LookupHost(ctx, host)
	}
}

// dialer keeps connections alive as libpq's parameters say; nil if they say nothing.
func dialer(keepalives, idle, interval, count string) (*net.Dialer, error) {
	if keepalives+idle+interval+count == "" {
		return nil, nil
	}
	var n [3]int
	for i, text := range []string{idle, interval, count} {
		if text == "" {
			continue
		}
		var err error
		if n[i], err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
			return nil,
				fmt.Errorf("postgres: the storage's address has %q as a parameter of keepalives, which is not an "+
					"integer", text)
		}
	}
	return &net.Dialer{KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{
		Enable: keepalives != "0", Idle: time.Duration(n[0]) * time.Second, Interval: time.Duration(n[1]) * time.Second,
		Count: n[2],
	}}, nil
}

// tlsVersion is a version by libpq's name; 0 leaves it to Go, whose oldest is TLSv1.2, as libpq's.
func tlsVersion(name string) uint16 {
	return map[string]uint16{"tlsv1.2": tls.VersionTLS12, "tlsv1.3": tls.VersionTLS13}[strings.ToLower(name)]
}

package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// LoadDotEnv sets the variables of the file .env in the current folder, if there is one, for this
// process, and returns their names. Values of the file replace those of the environment. Dagster's
// commands begin in the same way (Dagster 1.13: dagster._cli.utils.get_instance_for_cli).
func LoadDotEnv() (names []string, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, ".env")
	if info, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
		return nil, nil
	}
	vars, err := ReadDotEnv(file, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	names = slices.Sorted(maps.Keys(vars))
	for _, name := range names {
		if err := os.Setenv(name, vars[name]); err != nil {
			return nil, fmt.Errorf("%s: variable %s: %w", file, name, err)
		}
	}
	return names, nil
}

// ReadDotEnv reads a file of environment variables as Dagster does (python-dotenv 1.2). It skips
// lines that it cannot parse and names without a value. ${NAME} and ${NAME:-default} in a value are
// replaced by an earlier variable of the file, else by a variable of env.
func ReadDotEnv(file string, env Lookup) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(text) {
		return nil, fmt.Errorf("%s: it is not UTF-8 text", file)
	}
	return parseDotEnv(string(text), env), nil
}

// The parts of a line (python-dotenv: dotenv.parser). They match at the beginning of the rest of
// the text, except dotEnvRemark and dotEnvVariable, which match anywhere in a value.
var (
	dotEnvExport    = regexp.MustCompile(`^export[ \t\v\f]+`)
	dotEnvQuotedKey = regexp.MustCompile(`^'([^']+)'`)
	dotEnvKey       = regexp.MustCompile(`^([^=#\s]+)`)
	dotEnvEquals    = regexp.MustCompile(`^[ \t\v\f]*=([ \t\v\f]*)`)
	dotEnvSingle    = regexp.MustCompile(`^'((?:\\(?s:.)|[^'\\])*)'`)
	dotEnvDouble    = regexp.MustCompile(`^"((?:\\(?s:.)|[^"\\])*)"`)
	dotEnvPlain     = regexp.MustCompile(`^([^\n]*)`)
	dotEnvEnd       = regexp.MustCompile(`^(?:[ \t\v\f]*#[^\n]*)?[ \t\v\f]*(?:\n|$)`)
	dotEnvLine      = regexp.MustCompile(`^[^\n]*\n?`)
	dotEnvRemark    = regexp.MustCompile(`\s+#.*`)
	dotEnvVariable  = regexp.MustCompile(`\$\{([^}:]*)(:-([^}]*))?\}`)
)

var dotEnvEscapes = strings.NewReplacer(`\\`, `\`, `\'`, `'`, `\"`, `"`, `\a`, "\a", `\b`, "\b",
	`\f`, "\f", `\n`, "\n", `\r`, "\r", `\t`, "\t", `\v`, "\v")

func parseDotEnv(text string, env Lookup) map[string]string {
	s := dotEnvScanner(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.TrimPrefix(text, "\ufeff")))
	vars := map[string]string{}
	empty := map[string]bool{} // names without a value: ${NAME} is empty then, even if env has NAME
	for {
		s = dotEnvScanner(strings.TrimLeftFunc(string(s), unicode.IsSpace))
		if s == "" {
			return vars
		}
		key, value, assigned, ok := s.binding()
		switch {
		case !ok:
			s.take(dotEnvLine)
		case key == "": // a comment
		case !assigned:
			delete(vars, key)
			empty[key] = true
		default:
			vars[key] = dotEnvVariable.ReplaceAllStringFunc(value, func(ref string) string {
				m := dotEnvVariable.FindStringSubmatch(ref)
				if v, ok := vars[m[1]]; ok {
					return v
				}
				if empty[m[1]] {
					return ""
				}
				if v, ok := env(m[1]); ok {
					return v
				}
				return m[3]
			})
			delete(empty, key)
		}
	}
}

// dotEnvScanner is the part of the text that is not parsed yet.
type dotEnvScanner string

// take removes what re matches at the beginning of the text. It returns the first group of re, if
// there is one, and whether re matched.
func (s *dotEnvScanner) take(re *regexp.Regexp) (string, bool) {
	m := re.FindStringSubmatch(string(*s))
	if m == nil {
		return "", false
	}
	*s = (*s)[len(m[0]):]
	if len(m) > 1 {
		return m[1], true
	}
	return "", true
}

func (s *dotEnvScanner) begins(char string) bool { return strings.HasPrefix(string(*s), char) }

// binding reads one assignment, a name without a value, or a comment, which has an empty key. If it
// fails, it has removed the text up to the fault; the caller removes the rest of the line.
func (s *dotEnvScanner) binding() (key, value string, assigned, ok bool) {
	s.take(dotEnvExport)
	if !s.begins("#") {
		re := dotEnvKey
		if s.begins("'") {
			re = dotEnvQuotedKey
		}
		if key, ok = s.take(re); !ok {
			return "", "", false, false
		}
	}
	if blanks, equals := s.take(dotEnvEquals); equals {
		assigned = true
		switch {
		case blanks != "" && s.begins("#"):
		case s.begins("'"):
			if value, ok = s.take(dotEnvSingle); !ok {
				return "", "", false, false
			}
			value = strings.NewReplacer(`\\`, `\`, `\'`, `'`).Replace(value)
		case s.begins(`"`):
			if value, ok = s.take(dotEnvDouble); !ok {
				return "", "", false, false
			}
			value = dotEnvEscapes.Replace(value)
		default:
			value, _ = s.take(dotEnvPlain)
			value = strings.TrimRightFunc(dotEnvRemark.ReplaceAllString(value, ""), unicode.IsSpace)
		}
	}
	_, ok = s.take(dotEnvEnd)
	return key, value, assigned, ok
}

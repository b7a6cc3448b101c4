package launcher

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// runName matches a run's part of a worker's name: DNS-safe and at most 45 bytes long.
var runName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,43}[a-z0-9])?$`)

// Dagster accepts every run ID that Python's uuid.UUID reads: also in upper case, in braces, as a
// URN or without hyphens. Such an ID is not DNS-safe. Its name is x, the index of its form in
// uuidForms, a bit for each digit that is upper case, and its digits in lower case.
var (
	escaped   = regexp.MustCompile(`^x([0-3])([0-9a-f]{8})-([0-9a-f]{32})$`)
	uuidForms = []string{"%s-%s-%s-%s-%s", "{%s-%s-%s-%s-%s}", "urn:uuid:%s-%s-%s-%s-%s", "%s%s%s%s%s"}
)

// RunName returns the part of a worker's name that stands for its run. This is the run's ID if that
// is DNS-safe, else a reversible form of it. It returns "" if the ID has no such form.
func (id ID) RunName() string {
	if runName.MatchString(id.Run) && !escaped.MatchString(id.Run) {
		return id.Run
	}
	digits := strings.NewReplacer("urn:uuid:", "", "{", "", "}", "", "-", "").Replace(id.Run)
	if len(digits) != 32 {
		return ""
	}
	form := slices.IndexFunc(uuidForms, func(form string) bool { return formatted(form, digits) == id.Run })
	upper := uint32(0)
	for i, r := range digits {
		if unicode.IsUpper(r) {
			upper |= 1 << i
		}
	}
	name := fmt.Sprintf("x%d%08x-%s", form, upper, strings.ToLower(digits))
	if !escaped.MatchString(name) {
		return ""
	}
	return name
}

// runOf reverses RunName.
func runOf(name string) string {
	m := escaped.FindStringSubmatch(name)
	if m == nil {
		return name
	}
	form, _ := strconv.Atoi(m[1]) // the pattern has checked both numbers
	upper, _ := strconv.ParseUint(m[2], 16, 32)
	digits := []byte(m[3])
	for i, d := range digits {
		if upper&(1<<i) != 0 {
			digits[i] = byte(unicode.ToUpper(rune(d)))
		}
	}
	return formatted(uuidForms[form], string(digits))
}

func formatted(form, d string) string {
	return fmt.Sprintf(form, d[:8], d[8:12], d[12:16], d[16:20], d[20:])
}

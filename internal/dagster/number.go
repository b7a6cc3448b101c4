package dagster

import (
	"errors"
	"math/big"
	"strconv"
	"strings"
)

// maxDigits is the maximum number of digits that Python's int() accepts
// (sys.int_info.default_max_str_digits, 3.11).
const maxDigits = 4300

// pythonDigits trims a text as Python's int() and float() do and removes the underscores between
// digits. It returns false if Python would reject an underscore.
func pythonDigits(s string) (string, bool) {
	s = strings.TrimSpace(s)
	for i := range s {
		if s[i] == '_' && (i == 0 || i == len(s)-1 || !isDigit(s[i-1]) || !isDigit(s[i+1])) {
			return "", false
		}
	}
	return strings.ReplaceAll(s, "_", ""), true
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

// Int parses a text as Python's int() does, which has no largest number.
func Int(s string) (*big.Int, bool) {
	s, ok := pythonDigits(s)
	if !ok || len(strings.TrimLeft(s, "+-")) > maxDigits {
		return nil, false
	}
	return new(big.Int).SetString(s, 10)
}

// Float parses a text as Python's float() does: it accepts surrounding blanks, inf and nan, but no
// hexadecimal digits.
func Float(s string) (float64, bool) {
	s, ok := pythonDigits(s)
	if !ok || strings.ContainsAny(s, "xX") {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if errors.Is(err, strconv.ErrRange) {
		err = nil // an infinity, as in Python
	}
	return f, err == nil
}

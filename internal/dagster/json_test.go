package dagster

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEncodeAsPythonDoes(t *testing.T) {
	for _, c := range []struct {
		in   any
		want string
	}{
		{nil, `null`},
		{1795337531.0, `1795337531.0`},
		{1e16, `1e+16`},
		{1e-5, `1e-05`},
		{0.1, `0.1`},
		{math.Inf(-1), `-Infinity`},
		{"é\u2028\U0001f600\x7f\x01\"\\\n", `"\u00e9\u2028\ud83d\ude00\u007f\u0001\"\\\n"`},
		{map[string]any{"b": 1, "a": []any{true, "x"}, "B": map[string]string{}},
			`{"B": {}, "a": [true, "x"], "b": 1}`},
		{[]any{}, `[]`},
	} {
		if got := string(Encode(c.in)); got != c.want {
			t.Errorf("Encode(%v) = %s, want %s", c.in, got, c.want)
		}
	}
}

func TestObjectKeepsWhatItDoesNotKnow(t *testing.T) {
	text := `{"__class__": "PipelineRun", "future": {"x": 1.50, "y": "\ud800 lone", "z": [1, 2]}, "run_id": "r", ` +
		`"status": {"__enum__": "PipelineRunStatus.QUEUED"}, "tags": {"k": "v"}}`
	r, err := ParseRun(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Body(); got != text {
		t.Errorf("Body() = %s\nwant %s", got, text)
	}
	r.Status = Starting
	if got, want := r.Body(), strings.Replace(text, "QUEUED", "STARTING", 1); got != want {
		t.Errorf("Body() = %s\nwant %s", got, want)
	}
}

func TestParseRunRefusesWhatWouldBreakDagster(t *testing.T) {
	for name, text := range map[string]string{
		"a tag that is a number": `{"run_id": "r", "tags": {"n": 1}}`,
		"no run_id":              `{"tags": {}}`,
		"an array":               `[]`,
		"cut off":                `{"run_id": "r"`,
		"text behind":            `{"run_id": "r"} x`,
		"nested without end":     `{"run_id": ` + strings.Repeat("[", 5000),
	} {
		if r, err := ParseRun(text); err == nil {
			t.Errorf("%s: ParseRun = %+v, want an error", name, r)
		}
	}
}

func TestRawControlCharactersAreRead(t *testing.T) {
	v, err := Decode("{\"a\": \"x\ty\x01\"}")
	if err != nil || v.(map[string]any)["a"] != "x\ty\x01" {
		t.Errorf("Decode = %v, %v", v, err)
	}
}

func TestPriorityIsPythonsInt(t *testing.T) {
	for tag, want := range map[string]string{
		"3": "3", " +3 ": "3", "-2": "-2", "1_0": "10", "1.5": "0", "": "0", "x": "0", "_1": "0", "1_": "0",
		"1__0": "0", "+_1": "0", "0x10": "0",
		"9223372036854775808": "9223372036854775808", "-99999999999999999999": "-99999999999999999999",
		strings.Repeat("9", 4301): "0",
	} {
		if got := (Run{Tags: map[string]string{PriorityTag: tag}}).Priority(); got.String() != want {
			t.Errorf("Priority(%q) = %s, want %s", tag, got, want)
		}
	}
}

func TestIgnoredTags(t *testing.T) {
	const longest = " is not a number of seconds. The run may take as long as it needs."
	for _, c := range []struct {
		tags map[string]string
		want []string
	}{
		{map[string]string{PriorityTag: "1.5", "team": "x"},
			[]string{`The tag dagster/priority is ignored: "1.5" is not an integer. The run has priority 0.`}},
		{map[string]string{MaxRuntimeTag: "five", maxRuntimeSecondsTag: "six"},
			[]string{`The tag dagster/max_runtime is ignored: "five"` + longest}},
		{map[string]string{maxRuntimeSecondsTag: "0x10"},
			[]string{`The tag dagster/max_runtime_seconds is ignored: "0x10"` + longest}},
		{map[string]string{PriorityTag: "9223372036854775808", MaxRuntimeTag: " 5e1 ", maxRuntimeSecondsTag: "six"},
			nil},
		{map[string]string{PriorityTag: "", MaxRuntimeTag: ""}, nil},
	} {
		if got := (Run{Tags: c.tags}).IgnoredTags(); !slices.Equal(got, c.want) {
			t.Errorf("IgnoredTags of %v = %q, want %q", c.tags, got, c.want)
		}
	}
}

func TestTimesRoundTrip(t *testing.T) {
	for _, us := range []int64{0, 1, 1795337531113305, 1795337531999999} {
		at := time.UnixMicro(us).UTC()
		if got := FromUnix(ToUnix(at)); !got.Equal(at) {
			t.Errorf("FromUnix(ToUnix(%v)) = %v", at, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"a": [1, 2.5e3, null, true, "x\u00e9\ud83d\ude00"]}`, `"\ud800"`, `[[[]]]`, `-0.0`,
		`NaN`, `{"a":1,"a":2}`, "\"\x01\""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := Decode(text)
		if err != nil {
			return
		}
		once := string(Encode(v))
		again, err := Decode(once)
		if err != nil {
			t.Fatalf("Decode(Encode(Decode(%q))) = %v", text, err)
		}
		if twice := string(Encode(again)); twice != once {
			t.Fatalf("Encode is not stable: %q then %q", once, twice)
		}
		var std any
		if json.Unmarshal([]byte(text), &std) == nil && !json.Valid([]byte(once)) {
			t.Fatalf("%q is JSON, %q is not", text, once)
		}
	})
}

// Any body or event is either refused or encoded again without loss, and the result can be decoded
// again.
func FuzzParseRunAndEvent(f *testing.F) {
	f.Add(`{"run_id": "r", "pipeline_name": "j", "status": {"__enum__": "PipelineRunStatus.QUEUED"}, "tags": {"a": ` +
		`"b"}, "x": [1, 2.50]}`)
	f.Add(`{"__class__": "EventLogEntry", "dagster_event": {"event_type_value": "PIPELINE_START", "pipeline_name": ` +
		`"j"}, "level": 10, "timestamp": 1.5, "run_id": "r", "error_info": null, "user_message": ""}`)
	f.Add(`{"run_op_concurrency": {"all_pools": {"__set__": ["p"]}, "root_key_counts": {"p": 1}}, "run_id": "r", ` +
		`"tags": {}}`)
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := ParseRun(text); err == nil {
			again, err := ParseRun(r.Body())
			if err != nil || again.ID != r.ID || again.Status != r.Status || len(again.Tags) != len(r.Tags) {
				t.Fatalf("ParseRun(Body()) of %q = %+v, %v", text, again, err)
			}
		}
		if e, err := ParseEvent(text); err == nil {
			again, err := ParseEvent(e.JSON())
			if err != nil || again.Type != e.Type || !again.Time.Equal(e.Time) {
				t.Fatalf("ParseEvent(JSON()) of %q = %+v, %v", text, again, err)
			}
		}
	})
}

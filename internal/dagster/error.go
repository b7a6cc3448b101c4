package dagster

import "strings"

// ErrorInfo is an error as Dagster keeps it in events (dagster._utils.error.SerializableErrorInfo).
type ErrorInfo struct {
	Message string   // ends with a newline in what Python writes
	Class   string   // of the exception; "" if there is none
	Stack   []string // lines of the traceback
	Cause   *ErrorInfo
	Context *ErrorInfo
}

// NewErrorInfo converts an error of Go.
func NewErrorInfo(err error) ErrorInfo {
	return ErrorInfo{Message: strings.TrimSpace(err.Error()) + "\n"}
}

func errorInfoOf(o Object) ErrorInfo {
	e := ErrorInfo{Message: o.text("message"), Class: o.text("cls_name"), Stack: o.texts("stack")}
	for field, into := range map[string]**ErrorInfo{"cause": &e.Cause, "context": &e.Context} {
		if sub := o.object(field); sub != nil {
			inner := errorInfoOf(sub)
			*into = &inner
		}
	}
	return e
}

// value is the error for [Encode].
func (e ErrorInfo) value() map[string]any {
	stack := []any{}
	for _, line := range e.Stack {
		stack = append(stack, line)
	}
	v := map[string]any{"__class__": "SerializableErrorInfo", "cause": nil, "cls_name": nil, "context": nil,
		"message": e.Message, "stack": stack}
	if e.Class != "" {
		v["cls_name"] = e.Class
	}
	if e.Cause != nil {
		v["cause"] = e.Cause.value()
	}
	if e.Context != nil {
		v["context"] = e.Context.value()
	}
	return v
}

// errorValue returns an error of Go in a form for [Encode]; nil for a nil error.
func errorValue(err error) any {
	if err == nil {
		return nil
	}
	return NewErrorInfo(err).value()
}

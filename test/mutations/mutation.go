package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// mutation is one entry of mutations.yaml, which explains the fields.
type mutation struct {
	Name  string
	Why   string
	Test  string
	Quick bool
	Edits []edit
}

type edit struct {
	In      string
	Replace string
	By      string
}

func load(file string) ([]mutation, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	var all []mutation
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	names := map[string]bool{}
	for _, m := range all {
		if m.Name == "" || m.Why == "" || m.Test == "" || len(m.Edits) == 0 {
			return nil, fmt.Errorf("%s: mutation %q: name, why, test and edits: required", file, m.Name)
		}
		if names[m.Name] {
			return nil, fmt.Errorf("%s: there are two mutations %q", file, m.Name)
		}
		names[m.Name] = true
	}
	return all, nil
}

// apply puts the text of each file that m changes into changed, by its path from root. If a file is
// already in changed, that text is changed further. apply writes no file. After an error changed is
// as it was.
func (m mutation) apply(root string, changed map[string]string) error {
	texts := maps.Clone(changed)
	read := func(file string) (string, error) {
		if text, ok := texts[file]; ok {
			return text, nil
		}
		text, err := os.ReadFile(filepath.Join(root, file))
		return string(text), err
	}
	for _, e := range m.Edits {
		d, err := find(root, e.In, read)
		if err != nil {
			return fmt.Errorf("mutation %s: %w", m.Name, err)
		}
		old := pattern(e.Replace).FindAllStringIndex(d.text[d.start:d.end], -1)
		if len(old) != 1 {
			return fmt.Errorf("mutation %s: %s (%s) contains this text %d times, not once: %s", m.Name, e.In, d.file,
				len(old), e.Replace)
		}
		texts[d.file] = d.text[:d.start+old[0][0]] + strings.TrimSpace(e.By) + d.text[d.start+old[0][1]:]
	}
	maps.Copy(changed, texts)
	return nil
}

// pattern matches text whatever white space its lines start with.
func pattern(text string) *regexp.Regexp {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		lines[i] = regexp.QuoteMeta(strings.TrimSpace(line))
	}
	return regexp.MustCompile(strings.Join(lines, `[ \t]*\n[ \t]*`))
}

// Command helm renders a chart as "helm template" does, by Helm's own library:
//
//	go run . [-values FILE] [-release NAME] [-namespace NAME] CHART
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/yaml"
)

func main() {
	values := flag.String("values", "", "file with values")
	release := flag.String("release", "slipway", "name of the release")
	namespace := flag.String("namespace", "default", "its namespace")
	flag.Parse()
	out, err := renderFile(flag.Arg(0), *values, *release, *namespace)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(out)
}

func renderFile(chart, file, release, namespace string) (string, error) {
	values := map[string]any{}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if err := yaml.Unmarshal(text, &values); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
	}
	return render(chart, values, release, namespace)
}

// render is all objects of a chart, as YAML documents in the order of their files.
func render(dir string, values map[string]any, release, namespace string) (string, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return "", err
	}
	all, err := chartutil.ToRenderValues(chart, values,
		chartutil.ReleaseOptions{Name: release, Namespace: namespace, IsInstall: true, Revision: 1},
		chartutil.DefaultCapabilities)
	if err != nil {
		return "", err
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if path.Ext(name) != ".yaml" {
			continue
		}
		for doc := range strings.SplitSeq(files[name], "\n---\n") {
			if strings.TrimSpace(doc) != "" {
				fmt.Fprintf(&b, "---\n# %s\n%s\n", name, strings.Trim(doc, "\n"))
			}
		}
	}
	return b.String(), nil
}

package cli

import (
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/causeway-mesh/causeway/charts"
	"github.com/causeway-mesh/causeway/internal/check"
)

// chartRights are all rights that the chart gives to Causeway's accounts, but for those of Helm's hooks.
func chartRights(namespace string) ([]check.Right, error) {
	r, err := charts.Render(namespace, map[string]any{"clusterName": "any"})
	if err != nil {
		return nil, err
	}
	roles := map[string][]rbacv1.PolicyRule{}
	var bindings []rbacv1.ClusterRoleBinding // of both kinds: those of Roles have a namespace
	for _, o := range r.Objects {
		var role rbacv1.ClusterRole
		var binding rbacv1.ClusterRoleBinding
		switch o.GetKind() {
		case "ClusterRole", "Role":
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role)
			roles[o.GetKind()+"/"+o.GetName()] = role.Rules
		case "ClusterRoleBinding", "RoleBinding":
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &binding)
			bindings = append(bindings, binding)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s %s of the chart: %w", o.GetKind(), o.GetName(), err)
		}
	}
	var rights []check.Right
	for _, b := range bindings {
		for _, s := range b.Subjects {
			for _, rule := range roles[b.RoleRef.Kind+"/"+b.RoleRef.Name] {
				rights = append(rights, ruleRights(s.Name, b.Namespace, rule)...)
			}
		}
	}
	return rights, nil
}

func ruleRights(account, namespace string, rule rbacv1.PolicyRule) []check.Right {
	names := rule.ResourceNames
	if len(names) == 0 {
		names = []string{""}
	}
	var rights []check.Right
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				for _, name := range names {
					rights = append(rights, check.Right{Account: account, Verb: verb, Group: group, Resource: resource, Name: name, Namespace: namespace})
				}
			}
		}
	}
	return rights
}

package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-mesh/causeway/api/v1alpha1"
	"github.com/causeway-mesh/causeway/internal/clusterinfo"
)

// clusterFlags choose a cluster, as kubectl's flags do, and Causeway's namespace in it.
type clusterFlags struct {
	kubeconfig, context, namespace string
}

// add adds the flags to c. The flag -n is Causeway's own namespace.
func (f *clusterFlags) add(c *cobra.Command) {
	f.addCluster(c)
	c.Flags().StringVarP(&f.namespace, "namespace", "n", clusterinfo.DefaultNamespace, "Causeway's own `namespace`")
}

// addBeside adds the flags to a command whose flag -n is a namespace of Services.
func (f *clusterFlags) addBeside(c *cobra.Command) {
	f.addCluster(c)
	c.Flags().StringVar(&f.namespace, "causeway-namespace", clusterinfo.DefaultNamespace, "Causeway's own `namespace`")
}

func (f *clusterFlags) addCluster(c *cobra.Command) {
	c.Flags().StringVar(&f.kubeconfig, "kubeconfig", "", "path of the kubeconfig `file` (default $KUBECONFIG or ~/.kube/config)")
	c.Flags().StringVar(&f.context, "context", "", "`name` of the kubeconfig context (default the current one)")
}

// cluster is a connection to an API server.
type cluster struct {
	client.Client
	// version asks the API server for its version.
	version func() (*version.Info, error)
	// now is the API server's clock, as its last answer told it.
	now func() time.Time
	// config is how it is reached, for what is no object; nil in tests.
	config *rest.Config
	// forwardTo stands for forward in tests. Nil: none.
	forwardTo forwarder
}

// forwarder forwards a port of this machine to one of a pod's loopback, until stop is
// called.
type forwarder func(ctx context.Context, namespace, pod string, port int) (address string, stop func(), err error)

// kinds are those that the command reads and writes: Kubernetes' and Causeway's own.
func kinds() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(s))
	utilruntime.Must(v1alpha1.AddToScheme(s))
	return s
}

// noKinds reports whether err says that the cluster does not know Causeway's kinds: it is not installed there.
func noKinds(err error) bool {
	return meta.IsNoMatchError(err) || apierrors.IsNotFound(err)
}

// listError makes a sentence of an error to list Causeway's own objects.
func listError(what string, err error) error {
	err = fmt.Errorf("list %s: %w", what, err)
	if noKinds(err) {
		return withHint(err, "Causeway is not in this cluster: `causeway install` puts it there")
	}
	return err
}

// connect makes a client for the cluster that f names. It reaches for the API server only when the client is used.
// The API server's warnings are written to warnings, each once.
func connect(f clusterFlags, warnings io.Writer) (cluster, error) {
	log.SetLogger(logr.Discard()) // the client's own remarks are for servers
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: f.context}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if err != nil {
		return cluster{}, withHint(fmt.Errorf("read the kubeconfig: %w", err), "--kubeconfig and --context choose a cluster as they do for kubectl")
	}
	config.QPS, config.Burst = 50, 300
	config.UserAgent = "causeway/" + Version()
	config.WarningHandler = rest.NewWarningWriter(warnings, rest.WarningWriterOptions{Deduplicate: true})
	var clock serverClock
	config.Wrap(clock.listen)
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return cluster{}, fmt.Errorf("use the kubeconfig: %w", err)
	}
	c, err := newClient(config)
	if err != nil {
		return cluster{}, withHint(fmt.Errorf("reach the cluster: %w", err), "--kubeconfig and --context choose a cluster as they do for kubectl")
	}
	return cluster{Client: c, version: d.ServerVersion, now: clock.now, config: config}, nil
}

// answerTimeout is how long an API server may take for one answer, where the command itself sets no bound.
const answerTimeout = time.Minute

// newClient makes a client of which no call waits for ever.
func newClient(config *rest.Config) (client.Client, error) {
	bounded := rest.CopyConfig(config)
	bounded.Timeout = answerTimeout
	return client.New(bounded, client.Options{Scheme: kinds()})
}

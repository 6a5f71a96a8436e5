//go:build e2e

package e2e

// shop is the namespace in both clusters. CLUSTER is replaced by the cluster's name.
const shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: cluster, namespace: shop}
data: {name: CLUSTER}
---
`

// callers are two pods under an account of their own each.
const callers = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: client, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: guest, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  serviceAccountName: client
  automountServiceAccountToken: false
  containers: [{name: client, image: causeway.dev/shop:demo, imagePullPolicy: Never, args: [client]}]
---
apiVersion: v1
kind: Pod
metadata: {name: guest, namespace: shop}
spec:
  serviceAccountName: guest
  automountServiceAccountToken: false
  containers: [{name: guest, image: causeway.dev/shop:demo, imagePullPolicy: Never, args: [client]}]
`

// server is the pod of a shop's service: HTTP on 8080, a greeter on 7000, an echo on 7001.
const server = `
    spec:
      serviceAccountName: bar
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      containers:
        - name: bar
          image: causeway.dev/shop:demo
          imagePullPolicy: Never
          args: [bar]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: CLUSTER, valueFrom: {configMapKeyRef: {name: cluster, key: name}}}
          ports: [{name: http, containerPort: 8080}, {name: greet, containerPort: 7000}, {name: echo, containerPort: 7001}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}
`

// served are bar, two pods of it; baz, exported like bar but with a pod of its own; vault, which bar's pods serve too and which is
// not exported; redis, a pod in whose network a test runs a server.
const served = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: bar, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: bar, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: bar}}
  template:
    metadata: {labels: {app: bar}}` + server + `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: baz, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: baz}}
  template:
    metadata: {labels: {app: baz}}` + server + `---
apiVersion: v1
kind: Service
metadata: {name: bar, namespace: shop, annotations: {causeway.dev/protocol: tcp}}
spec:
  selector: {app: bar}
  ports:
    - {name: http, port: 80, targetPort: http}
    - {name: greet, port: 7000, targetPort: greet}
    - {name: echo, port: 7001, targetPort: echo}
---
apiVersion: v1
kind: Service
metadata: {name: baz, namespace: shop, labels: {causeway.dev/export: "true"}, annotations: {causeway.dev/protocol: tcp}}
spec:
  selector: {app: baz}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: shop}
spec:
  selector: {app: bar}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: redis, namespace: shop, labels: {app: redis}}
spec:
  serviceAccountName: bar
  automountServiceAccountToken: false
  tolerations: [{operator: Exists}] # a node without power must not cost it
  containers: [{name: redis, image: causeway.dev/shop:demo, imagePullPolicy: Never, args: [client]}]
---
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: shop, labels: {causeway.dev/export: "true"}}
spec:
  selector: {app: redis}
  ports: [{name: redis, port: 6379}]
`

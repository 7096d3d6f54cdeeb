/* A backend for Triton in the place of its onnxruntime backend, which no package has: it hands the requests that Triton
   gives it to execution.py beside it. */
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>

static PyObject *execute = NULL;

void *TRITONBACKEND_Initialize(void *backend) {
  dlopen(LIBPYTHON, RTLD_NOW | RTLD_GLOBAL); /* numpy looks for Python's names among all */
  Py_InitializeEx(0);
  PyObject *module = PyImport_ImportModule("execution");
  if (module) execute = PyObject_GetAttrString(module, "execute");
  if (PyErr_Occurred()) PyErr_Print();
  PyEval_SaveThread();
  return NULL;
}

void *TRITONBACKEND_ModelInstanceExecute(void *instance, void **requests, const uint32_t count) {
  PyGILState_STATE state = PyGILState_Ensure();
  PyObject *done = PyObject_CallFunction(
      execute, "KKI", (unsigned long long)instance, (unsigned long long)requests, count);
  if (!done) PyErr_Print();
  Py_XDECREF(done);
  PyGILState_Release(state);
  return NULL;
}

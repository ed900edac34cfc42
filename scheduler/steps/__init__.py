"""The built-in steps, one file each, and how a step's name becomes something that runs.

Two rules hold for every built-in step, on every framework.

*Dtypes.* A step that only picks or subtracts values that are there (`max_projection`, `subtract_background`)
keeps the stack's dtype. A step that averages or scales (`gaussian`, `richardson_lucy`, `rescale_intensity`)
computes in floating point and gives it: float32 for integers of up to 16 bits and for float32, float64 for
32-bit integers and for float64. Only the step `convert_dtype` makes integers of them again, by a rule that
has to be named.

*Borders.* Beyond its edge a stack continues with its outermost voxel (SciPy's mode "nearest"), on all three
axes.

*Several stacks.* A step may take several named stacks and arrays from files, and give several stacks and a
table: `scheduler.steps.carried` says which stacks there are from step to step.

A step of one's own is a function `fn(stack, *, …)`, decorated with `memcore.memory_types` or declared in the
config, that gives a new [Z, Y, X] stack, neither writes the one that it gets nor keeps it, and takes a
keyword-only `context` (`StepContext`) if it likes. Or it is a class, for what has to be set up once, such as
a model's weights: see `scheduler.steps.step_class`.
"""

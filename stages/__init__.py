from pipeline.core.interrupt import say_on_interrupt

say_on_interrupt()
